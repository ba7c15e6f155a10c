"""What a server says at its limits and at its end; its model is a counter."""

import contextlib
import gc
import http.client
import json
import signal
import socket

import commands
import http_client
import pytest
from fake_server import LATE, make_state
from starlette.testclient import TestClient

from experiments.serving import load, run_server
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


def test_what_it_counts_to(server):
    status, body, headers = http_client.call(server, "POST", TEXT, asked(model="one"))
    assert status == 200 and headers["X-Adapter-Digest"] == "digest of one"
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == (" w0 w1 w2", "length")
    assert body["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    _, body, headers = http_client.call(server, "POST", TEXT, asked(prompt=[[7, 8], "w1"]))
    assert [each["text"] for each in body["choices"]] == [" w0 w1 w2"] * 2
    assert headers["X-Adapter-Digest"] == "base digest" and body["usage"]["prompt_tokens"] == 3


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
    content = asked(stop=["w9", "4 w5"], max_tokens=400)
    if stream:
        with http_client.stream(server, TEXT, content) as lines:
            *events, last = [line.removeprefix("data: ") for line in lines]
        assert last == "[DONE]"
        choices = [json.loads(each)["choices"][0] for each in events]
        text, finish = "".join(each["text"] for each in choices), choices[-1]["finish_reason"]
    else:
        _, body, _ = http_client.call(server, "POST", TEXT, content)
        text, finish = body["choices"][0]["text"], body["choices"][0]["finish_reason"]
        assert body["usage"]["completion_tokens"] == 6
    assert (text, finish) == (" w0 w1 w2 w3 w", "stop")
    http_client.until(lambda: not http_client.counts(server)["active_sequences"])
    assert http_client.counts(server)['tokens_total{kind="completion"}'] == before + 6


@pytest.mark.parametrize("stream", [False, True])
def test_each_choice_is_that_of_its_own_prompt(server, stream):
    """One that a stop text ends is ended alone, and there are more of them than lanes."""
    prompt = ["w900", "w930", [910, 1], "w950"]
    content = asked(prompt=prompt, stop=["w932"], max_tokens=5)
    texts, ends = [""] * 4, [""] * 4
    if stream:
        with http_client.stream(server, TEXT, content) as lines:
            events = [json.loads(line.removeprefix("data: ")) for line in lines if "{" in line]
        choices = [each["choices"][0] for each in events]
    else:
        _, body, _ = http_client.call(server, "POST", TEXT, content)
        choices = body["choices"]
        assert [each["index"] for each in choices] == [0, 1, 2, 3]
        assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 18, "total_tokens": 23}
    for each in choices:
        texts[each["index"]] += each["text"]
        ends[each["index"]] += each["finish_reason"] or ""
    counted = ["".join(f" w{first + i}" for i in range(5)) for first in (900, 910, 950)]
    assert texts == [counted[0], " w930 w931 ", *counted[1:]]
    assert ends == ["length", "stop", "length", "length"]


class TestLimits:
    def test_of_the_body(self, server):
        long = asked(prompt="w1 " * 1000)
        assert error_of(server, long)[:2] == (413, "body_too_large")
        chunks = (json.dumps(long).encode()[i : i + 500] for i in range(0, 3000, 500))
        body = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in chunks)
        encoded = {"Transfer-Encoding": "chunked"}
        assert error_of(server, body, **encoded)[:2] == (413, "body_too_large")

    @pytest.mark.parametrize("changes", [{"max_tokens": 500}, {"prompt": [1] * 500}])
    def test_of_tokens(self, server, changes):
        status, code, error, _ = error_of(server, asked(**changes))
        assert (status, code) == (422, "context_length_exceeded")
        assert "together there may be 500" in error["message"]
        last = http_client.call(server, "POST", TEXT, asked(max_tokens=499))
        assert last[1]["usage"]["total_tokens"] == 500

    @pytest.mark.parametrize(("prompt", "follow"), [(10, 16), (490, 10)])
    def test_without_max_tokens_there_are_at_most_16(self, server, prompt, follow):
        content = {"model": "counter", "prompt": [1] * prompt}
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

    def test_of_sequences_of_one_request(self, server):
        status, code, error, _ = error_of(server, asked(prompt=["w1"] * 5))
        assert (status, code) == (422, "too_many_sequences")
        assert "has 5 sequences; at most 4 may" in error["message"]

    def test_of_slots(self, server):
        status, code, _, headers = error_of(server, asked(model="full"))
        assert (status, code, headers["Retry-After"]) == (503, "no_slot", "1")

    def test_of_memory(self, server):
        status, code, error, _ = error_of(server, asked(model="large"))
        assert (status, code) == (503, "no_memory") and "'large'" in error["message"]

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


class TestRefused:
    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"[]", b"null", b'{"a": NaN}', b'{"a": 1e999}', b"\xff", b"[" * 1500, b'{"a'],
    )
    def test_what_is_no_object(self, server, body):
        assert error_of(server, body)[:2] == (400, "invalid_json")

    @pytest.mark.parametrize(
        ("content", "param"),
        [
            (asked(prompt="\ud800"), "prompt"),
            (asked(prompt=["w1", "a\udfff"]), "prompt[1]"),
            (asked(model="\ud800"), "model"),
            (asked(**{"\ud800": 1}), "\\ud800"),
            ({"messages": [{"content": [{"text": "\udc00"}]}]}, "messages[0].content[0].text"),
        ],
    )
    def test_half_of_a_surrogate_pair(self, server, content, param):
        for path in (TEXT, CHAT):
            status, code, error, _ = error_of(server, content, path)
            assert (status, code, error["param"]) == (400, "invalid_value", param)
        assert http_client.call(server, "POST", TEXT, asked(user="\U0001d11e"))[0] == 200

    def test_a_type_in_capitals(self, server):
        kind = {"Content-Type": "APPLICATION/JSON; charset=utf-8"}
        assert http_client.call(server, "POST", TEXT, asked(), **kind)[0] == 200

    def test_what_a_browser_may_send_from_any_page(self, server):
        kind = {"Content-Type": "text/plain"}
        assert error_of(server, json.dumps(asked()).encode(), **kind)[0] == 415

    def test_a_model_that_is_not_there(self, server):
        for name in ("three", "../one", "/etc", ".", "..", "one/../two", "x" * 500):
            status, code, error, _ = error_of(server, asked(model=name))
            assert (status, code, error["param"]) == (404, "model_not_found", "model")

    def test_an_adapter_that_cannot_be_used_keeps_its_reason(self, server):
        status, code, error, _ = error_of(server, asked(model="broken"))
        assert (status, code) == (500, "adapter_unusable") and "secret" not in error["message"]

    def test_a_chat_without_a_template(self, server):
        content = {"model": "counter", "messages": [{"role": "user", "content": "w1"}]}
        assert error_of(server, content, CHAT)[:2] == (400, "no_chat")

    def test_a_token_that_the_model_has_not(self, server):
        assert error_of(server, asked(prompt=[1000]))[:2] == (400, "invalid_value")

    def test_an_admin_without_the_token(self, server):
        path = "/admin/adapters/one/load"
        assert error_of(server, {}, path)[0] == 401
        token = SETTINGS["token"]
        for given in ("Bearer another token", "Bearer", token, f"Basic {token}"):
            assert error_of(server, {}, path, Authorization=given)[0] == 401
        other = "/admin/adapters/.hidden/load"
        assert error_of(server, {}, other, Authorization=f"bEARER  {token}")[0] == 404
        right = {"Authorization": "Bearer a token of its own"}
        for name in ("%2e%2e", "..%2fone", "one%2f..%2ftwo", "%2fetc", ".hidden", "%00"):
            assert error_of(server, {}, f"/admin/adapters/{name}/load", **right)[0] == 404
        status, _, error, _ = error_of(server, {}, "/admin/adapters/counter/load", **right)
        assert status == 409 and "'counter' is the name of the base" in error["message"]

    def test_no_such_route(self, server):
        assert error_of(server, {}, "/v1/embeddings")[0] == 404
        assert http_client.call(server, "GET", TEXT)[0] == 405


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


def test_a_load_of_many_clients(server):
    found = load.measure(server, ["one", "two"], clients=3, requests=7, prompt="w1", tokens=5)
    assert [each.tokens for each in found.answers] == [5] * 7
    assert all(0 < each.first <= each.last <= found.seconds for each in found.answers)
    assert found.tokens_per_second == pytest.approx(35 / found.seconds)
    assert found.first_token(0.5) == sorted(each.first for each in found.answers)[3]
    with pytest.raises(ValueError, match="three: 404: "):
        load.ask(server, "three", "w1", 5, 0)


def test_mistakes_in_a_load_end_it_with_one_line():
    with socket.socket() as closed:  # it does not listen
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for flag, said in (
            (f"--url={url}", f"--url={url}: Connection refused"),
            ("--url=localhost:1", "--url=localhost:1: expected http://HOST:PORT"),
            ("--models=a,", "--models=a, has an empty entry"),
            ("--requests=0", "--requests=0: expected 1 or more"),
            ("--clients=0", "--clients=0: expected 1 or more"),
        ):
            ended = commands.run("experiments.serving.load", "--models=a", flag)
            assert (ended.returncode, ended.stderr) == (1, f"error: {said}\n")


class TestEnd:
    def test_what_runs_is_finished_and_what_is_new_refused(self, tmp_path):
        running = started(tmp_path, pause=0.01)
        url = http_client.until_ready(running)
        with http_client.stream(url, TEXT, asked(max_tokens=300)) as lines:
            next(lines)
            running.send(signal.SIGTERM)
            http_client.until(lambda: http_client.call(url, "GET", "/health")[0] == 503)
            assert error_of(url, asked())[:2] == (503, "draining")
            *_, before, last = lines
        assert last == "data: [DONE]" and '"finish_reason":"length"' in before
        ended = running.end()
        assert ended.returncode == 0 and "the store is closed" in ended.stdout

    def test_a_body_that_has_not_come_is_not_waited_for(self, tmp_path):
        running = started(tmp_path, drain_seconds=50)
        url = http_client.until_ready(running)
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
        with contextlib.closing(connection):
            head = {"Content-Type": "application/json", "Content-Length": "100"}
            connection.request("POST", TEXT, b"{", head)
            http_client.call(url, "GET", "/health")  # the other request has come before
            running.send(signal.SIGTERM)
            answer = connection.getresponse()
            assert (answer.status, json.load(answer)["error"]["code"]) == (503, "draining")
        ended = running.end(20)
        assert ended.returncode == 0 and not ended.stderr

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
