"""Requests to a server that a test has started, by the standard library alone."""

import contextlib
import http.client
import json
import re
import time


def url_of(started):
    """Where a started server listens, once it has said so."""
    while not (found := re.search(r"(http://[\d.]+:\d+)", started.said())):
        assert started.running, started.end()
    return found[1]


def until_ready(started):
    """The URL of a server that answers."""
    url = url_of(started)
    while call(url, "GET", "/health")[0] != 200:
        assert started.running, started.end()
        time.sleep(0.05)
    return url


def call(url, method, path, content=None, **headers):
    """Status, body and headers; `content` is bytes, or what is sent as JSON."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    given = {"Content-Type": "application/json", **headers}
    body = content if isinstance(content, bytes | None) else json.dumps(content).encode()
    with contextlib.closing(connection):
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        found = answer.read()
        kind = answer.headers.get_content_type()
        return (
            answer.status,
            json.loads(found) if kind == "application/json" else found.decode(),
            answer.headers,
        )


@contextlib.contextmanager
def stream(url, path, content):
    """The lines of an answer in events, as they come; on leaving, the connection is closed."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    with contextlib.closing(connection):
        body = json.dumps({**content, "stream": True})
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        yield (line.decode().strip() for line in answer if line.strip())


def send_and_go(url, path, content, begun):
    """Send a request, wait for `begun`, and close the connection without reading an answer."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    with contextlib.closing(connection):
        body = json.dumps(content)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        until(begun)


def counts(url):
    """The metrics of a server by name and labels."""
    _, text, _ = call(url, "GET", "/metrics")
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name.removeprefix("lora_jax_"): float(value) for name, _, value in lines}


def until(test):
    """Wait for something that another process does."""
    end = time.monotonic() + 60
    while not test():
        assert time.monotonic() < end
        time.sleep(0.01)
