"""What a server says at its limits and at its end; its model is a counter."""

import contextlib
import gc
import http.client
import json
import signal

import commands
import http_client
import pytest
from fake_server import LATE, make_state
from starlette.testclient import TestClient

from experiments.serving import run_server
from experiments.serving.app import make_app
from experiments.serving.state import DRAINING

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SETTINGS = {"lanes": 2, "queue": 2, "tokens": 500, "max_body": 2000, "token": "a token of its own"}


def started(folder, **settings):
    line = json.dumps({**SETTINGS, **settings})
    return commands.Started("tests/support/fake_server.py", folder, line)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    running = started(folder, pause=0.002)
    yield http_client.until_ready(running)
    running.send(signal.SIGTERM)
    ended = running.end()
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr


def asked(**changes):
    return {"model": "counter", "prompt": "w5", "max_tokens": 3, **changes}


def error_of(url, content, path=TEXT, **headers):
    """The status, and what the error says and names."""
    status, body, answered = http_client.call(url, "POST", path, content, **headers)
    assert {*body} == {"error"} and {*body["error"]} == {"message", "type", "param", "code"}
    assert body["error"]["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    return status, body["error"]["code"], body["error"], answered


def told(url, content, stream):
    """The texts of an answer, why they end, and its counts of tokens; whole, or from a stream."""
    if not stream:
        _, body, _ = http_client.call(url, "POST", TEXT, content)
        assert [each["index"] for each in body["choices"]] == [*range(len(body["choices"]))]
        whole = [(each["text"], each["finish_reason"]) for each in body["choices"]]
        return *map(list, zip(*whole, strict=True)), body["usage"]
    with http_client.stream(
        url, TEXT, {**content, "stream_options": {"include_usage": True}}
    ) as it:
        *lines, last = (line.removeprefix("data: ") for line in it)
    *events, counted = map(json.loads, lines)
    assert last == "[DONE]" and not counted["choices"]
    choices = [choice for event in events for choice in event["choices"]]
    count = 1 + max(each["index"] for each in choices)
    texts, ends = [""] * count, [""] * count
    for each in choices:
        texts[each["index"]] += each["text"]
        ends[each["index"]] += each["finish_reason"] or ""
    return texts, ends, counted["usage"]


def test_what_it_counts_to(server):
    status, body, headers = http_client.call(server, "POST", TEXT, asked(model="one"))
    assert status == 200 and headers["X-Adapter-Digest"] == "digest of one"
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == (" w0 w1 w2", "length")
    kind = {"Content-Type": "APPLICATION/JSON; charset=utf-8"}
    status, body, headers = http_client.call(server, "POST", TEXT, asked(user="\U0001d11e"), **kind)
    assert status == 200 and headers["X-Adapter-Digest"] == "base digest"


def test_the_first_token_is_timed_from_the_request_on(server):
    """Its adapter's load counts."""
    name = "first_token_seconds_sum"
    before = http_client.counts(server)[name]
    assert http_client.call(server, "POST", TEXT, asked(model="late"))[0] == 200
    assert http_client.counts(server)[name] - before >= LATE


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_frees_the_lane(server, stream):
    """It may begin in one token and end in the next; what follows is not computed."""
    before = http_client.counts(server)['tokens_total{kind="completion"}']
    texts, ends, usage = told(server, asked(stop=["w9", "4 w5"], max_tokens=400), stream)
    assert (texts, ends, usage["completion_tokens"]) == ([" w0 w1 w2 w3 w"], ["stop"], 6)
    http_client.until(lambda: not http_client.counts(server)["active_sequences"])
    assert http_client.counts(server)['tokens_total{kind="completion"}'] == before + 6


@pytest.mark.parametrize("stream", [False, True])
def test_a_token_that_stops_a_text_is_counted_and_not_part_of_it(server, stream):
    texts, ends, usage = told(server, asked(stop_token_ids=[3], max_tokens=400), stream)
    assert (texts, ends, usage["completion_tokens"]) == ([" w0 w1 w2"], ["stop"], 4)


@pytest.mark.parametrize("stream", [False, True])
def test_each_choice_is_that_of_its_own_prompt(server, stream):
    """One that a stop text ends is ended alone, and there are more of them than lanes."""
    prompt = ["w900", "w930", [910, 1], "w950"]
    texts, ends, usage = told(server, asked(prompt=prompt, stop=["w932"], max_tokens=5), stream)
    counted = ["".join(f" w{first + i}" for i in range(5)) for first in (900, 910, 950)]
    assert texts == [counted[0], " w930 w931 ", *counted[1:]]
    assert ends == ["length", "stop", "length", "length"]
    assert usage == {"prompt_tokens": 5, "completion_tokens": 18, "total_tokens": 23}


FLAG = "(--tokens of the server)"
NO_JSON = (b"", b"{", b"[]", b"null", b'{"a": NaN}', b'{"a": 1e999}', b"\xff", b"[" * 1500, b'{"a')
TOKEN = {"Authorization": f"bEARER  {SETTINGS['token']}"}
WITHOUT = ({}, *({"Authorization": each} for each in ("Bearer a", "Bearer", "a token of its own")))
ADMIN = "/admin/adapters/{}/load".format
REFUSED = (
    *((body, TEXT, {}, 400, "invalid_json", "the body ") for body in NO_JSON),
    *(
        (content, path, {}, 400, "invalid_json", "half of a surrogate pair")
        for content in (asked(prompt=["w1", "a\udfff"]), asked(**{"\ud800": 1}))
        for path in (TEXT, CHAT)
    ),
    (json.dumps(asked()).encode(), TEXT, {"Content-Type": "text/plain"}, 415, None, "must be of"),
    (asked(prompt="w1 " * 1000), TEXT, {}, 413, "body_too_large", "more than 2000 bytes"),
    *(
        (asked(**more), TEXT, {}, 422, "context_length_exceeded", f"may be 500 {FLAG}")
        for more in ({"max_tokens": 500}, {"max_tokens": 10**30}, {"prompt": [1] * 500})
    ),
    (asked(prompt=["w1"] * 5), TEXT, {}, 422, "too_many_sequences", "5 sequences; at most 4 may"),
    (asked(model="full"), TEXT, {}, 503, "no_slot", "'full'"),
    (asked(model="large"), TEXT, {}, 503, "no_memory", "'large'"),
    (asked(model="broken"), TEXT, {}, 503, "adapter_unusable", "'broken' cannot be used: place is"),
    *(
        (asked(model=name), TEXT, {}, 404, "model_not_found", "does not exist")
        for name in ("three", "../one", "/etc", ".", "..", "one/../two", "x" * 500)
    ),
    (
        {"model": "counter", "messages": [{"role": "user", "content": "w1"}]},
        *(CHAT, {}, 400, "no_chat", "no chat template"),
    ),
    (asked(prompt=[1000]), TEXT, {}, 400, "invalid_value", "has token 1000; the model has 1000"),
    *(({}, ADMIN("one"), given, 401, None, "need the bearer token") for given in WITHOUT),
    ({}, ADMIN("one"), {"Authorization": f"Basic {SETTINGS['token']}"}, 401, None, "bearer"),
    *(
        ({}, ADMIN(name), TOKEN, 404, None, "")
        for name in ("%2e%2e", "..%2fone", "one%2f..%2ftwo", "%2fetc", ".hidden", "%00")
    ),
    ({}, ADMIN("counter"), TOKEN, 409, "adapter_unusable", "'counter' is the name of the base"),
    ({}, "/v1/embeddings", {}, 404, None, "Not Found"),
)
"""What is sent where and with which headers, the answer's status and code, and what it says."""


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_refused(server, number):
    content, path, headers, status, code, said = REFUSED[number]
    found, named, error, answered = error_of(server, content, path, **headers)
    assert (found, named) == (status, code or named) and said in error["message"]
    assert answered["Retry-After"] == ("1" if code == "no_slot" else None)
    assert code != "model_not_found" or error["param"] == "model"


def test_a_route_takes_its_own_method_alone(server):
    assert http_client.call(server, "GET", TEXT)[0] == 405


class TestLimits:
    def test_of_the_body_that_comes_in_parts(self, server):
        long = json.dumps(asked(prompt="w1 " * 1000)).encode()
        chunks = (long[i : i + 500] for i in range(0, 3000, 500))
        body = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in chunks)
        encoded = {"Transfer-Encoding": "chunked"}
        assert error_of(server, body, **encoded)[:2] == (413, "body_too_large")

    @pytest.mark.parametrize(
        ("prompt", "limit", "follow"), [(10, {}, 16), (490, {}, 10), (1, {"max_tokens": 499}, 499)]
    )
    def test_without_max_tokens_there_are_at_most_16(self, server, prompt, limit, follow):
        content = {"model": "counter", "prompt": [1] * prompt, **limit}
        _, body, _ = http_client.call(server, "POST", TEXT, content)
        assert body["usage"]["completion_tokens"] == follow

    def test_of_the_queue(self, server):
        most, waits = asked(prompt=["w1"] * 4), asked(model="slow")
        fits = lambda: http_client.call(server, "POST", TEXT, most)[0] == 200  # noqa: E731
        assert fits()

        def refused():
            # Before it waits, `most` could come first, and it would be refused in its place.
            http_client.until(lambda: http_client.counts(server)["waiting_sequences"] == 1)
            status, code, _, headers = error_of(server, most)
            assert (status, code, headers["Retry-After"]) == (429, "queue_full", "1")
            return True

        http_client.send_and_go(server, TEXT, waits, refused)
        http_client.until(fits)

    def test_of_time(self, tmp_path):
        running = started(tmp_path, pause=0.05, time_limit=0.5)
        url = http_client.until_ready(running)
        assert error_of(url, asked(max_tokens=400))[:2] == (503, "timeout")
        with http_client.stream(url, TEXT, asked(max_tokens=400)) as lines:
            *_, last = lines
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        http_client.until(lambda: not http_client.counts(url)["active_sequences"])
        unfinished = {"Content-Length": "100"}
        assert error_of(url, b'{"model":', **unfinished)[:2] == (408, "timeout")
        running.kill()


@pytest.mark.parametrize(("word", "steps"), [("w13", 1), ("w14", 2)])
def test_a_failed_step_ends_what_it_spoils(server, word, steps):
    """The server lives on, and counts it."""
    before = http_client.counts(server)["failed_steps_total"]
    assert error_of(server, asked(prompt=word))[:2] == (500, "step_failed")
    assert http_client.call(server, "POST", TEXT, asked())[0] == 200
    assert http_client.counts(server)["failed_steps_total"] == before + steps


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_lane(server, stream):
    before = http_client.counts(server)["steps_total"]
    content = asked(max_tokens=499)
    if stream:
        with http_client.stream(server, TEXT, content) as lines:
            next(lines)
    else:
        http_client.send_and_go(
            server,
            TEXT,
            content,
            lambda: http_client.counts(server)["active_sequences"] == 1,
        )
    http_client.until(lambda: not http_client.counts(server)["active_sequences"])
    assert http_client.counts(server)["steps_total"] < before + 499


class TestEnd:
    def test_what_runs_is_finished_and_what_has_not_come_whole_is_refused(self, tmp_path):
        running = started(tmp_path, pause=0.01, drain_seconds=50)
        url = http_client.until_ready(running)
        slow = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
        head = {"Content-Type": "application/json", "Content-Length": "100"}
        with (
            contextlib.closing(slow),
            http_client.stream(url, TEXT, asked(max_tokens=300)) as lines,
        ):
            slow.request("POST", TEXT, b"{", head)
            http_client.call(url, "GET", "/health")  # the other requests have come before
            running.send(signal.SIGTERM)
            http_client.until(lambda: http_client.call(url, "GET", "/health")[0] == 503)
            assert error_of(url, asked())[:2] == (503, "draining")
            answer = slow.getresponse()
            assert (answer.status, json.load(answer)["error"]["code"]) == (503, "draining")
            *_, before, last = lines
        assert last == "data: [DONE]" and '"finish_reason":"length"' in before
        ended = running.end(20)
        assert ended.returncode == 0 and "the store is closed" in ended.stdout and not ended.stderr

    def test_what_takes_too_long_is_told(self, tmp_path):
        running = started(tmp_path, pause=0.05, drain_seconds=0.1)
        url = http_client.until_ready(running)
        with http_client.stream(url, TEXT, asked(max_tokens=499)) as lines:
            next(lines)
            running.send(signal.SIGTERM)
            *_, last = lines
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
        assert running.end().returncode == 0

    def test_a_model_that_cannot_be_loaded_is_said_once(self, tmp_path, caplog):
        """By who has started it: asyncio would add a traceback."""
        state = make_state(tmp_path, start=-1)
        with pytest.raises(ValueError, match="must be non-negative"):
            run_server.serve(state, run_server.bind("127.0.0.1", 0))
        gc.collect()
        assert not caplog.records

    def test_metrics_are_told_though_it_ends_before_it_is_ready(self, tmp_path):
        state = make_state(tmp_path)  # its thread has not been started
        state.status = DRAINING
        answer = TestClient(make_app(state)).get("/metrics")
        assert answer.status_code == 200 and "active_sequences 0.0" in answer.text

    def test_before_it_is_ready(self, tmp_path):
        running = started(tmp_path, start=30)
        url = http_client.url_of(running)
        status, body, _ = http_client.call(url, "GET", "/health")
        assert (status, body) == (503, {"status": "starting"})
        assert error_of(url, asked())[:2] == (503, "starting")
        running.send(signal.SIGTERM)
        assert running.end().returncode == 0
