"""The thread of the model: jobs whose adapter finds no slot wait for one, in their order."""

import types

import pytest
from fake_server import FakeEngine, FakeStore

from experiments.serving.errors import unavailable
from experiments.serving.model_thread import Failed, Job, ModelThread, Started, Step

SECONDS = 60


class Events:
    """What happens to jobs of one thread with one slot, all submitted before its first step."""

    def __init__(self):
        self.seen, self.active = [], []
        self.store, self.engine = FakeStore(slots=1), FakeEngine(lanes=8)
        self.thread = ModelThread(
            lambda: (self.store, self.engine, "base"),
            lambda thread, steps, failed: self.active.append(thread.active),
        )

    def job(self, name, adapter, tokens=2, prompt=1):
        row = types.SimpleNamespace(prompt_ids=(prompt,), max_new_tokens=tokens, stop_ids=())
        job = Job(adapter, [row], lambda event: self.seen.append((name, event)))
        self.thread.submit(job)
        return job

    def run(self):
        self.thread.start()
        self.thread.ready.result(SECONDS)
        while not any(name == "last" and _ends(event) for name, event in self.seen):
            self.thread.call(lambda: None).result(SECONDS)
        self.thread.stop()
        self.thread.join(SECONDS)
        assert not +self.store.leased
        return [
            (name, "starts" if isinstance(event, Started) else _end_of(event))
            for name, event in self.seen
            if isinstance(event, Started) or _ends(event)
        ]


def _ends(event):
    return isinstance(event, Failed) or (isinstance(event, Step) and event.finish is not None)


def _end_of(event):
    return event.error.code if isinstance(event, Failed) else event.finish


def test_they_begin_in_their_order():
    """A job whose adapter is in a slot does not overtake them; one of the base needs no slot."""
    events = Events()
    events.job("a", "one", tokens=9)
    events.job("b", "two")
    events.job("last", "one")
    events.job("base", None)
    events.thread.cancel(events.job("gone", "two"))
    found = events.run()
    assert found == [
        *(("a", "starts"), ("base", "starts"), ("base", "length"), ("a", "length")),
        *(("b", "starts"), ("b", "length"), ("last", "starts"), ("last", "length")),
    ]


def test_who_no_longer_waits_for_a_call_does_not_end_the_thread():
    events = Events()
    done = []
    gone = events.thread.call(lambda: done.append("gone"))
    assert gone.cancel()
    events.job("last", None)
    assert events.run()[-1] == ("last", "length") and not done
    assert events.thread.ended.exception(SECONDS) is None


@pytest.mark.parametrize("prompt", [1, 14])
def test_others_do_not_wait_for_a_load(prompt):
    """It is waited for elsewhere, and given to the job."""
    events = Events()
    events.job("last", "slow")
    events.thread.cancel(events.job("gone", "slow"))
    a = events.job("a", "one", prompt=prompt)
    post, ended = a.post, []

    def loads_at_the_end(event):
        post(event)
        if _ends(event) and not ended:
            ended.append(event)
            events.store.loading.set_result("slow's numbers")

    a.post = loads_at_the_end
    end = "length" if prompt == 1 else "step_failed"
    assert events.run() == [("a", "starts"), ("a", end), ("last", "starts"), ("last", "length")]


def test_a_load_that_fails_ends_its_job_alone():
    events = Events()
    events.store.loading.set_exception(OSError("the disk is gone"))
    events.job("a", "slow")
    events.job("last", "one")
    assert sorted(events.run()) == [
        *(("a", "adapter_unusable"), ("last", "length"), ("last", "starts")),
    ]


def test_rows_are_counted_while_they_are_computed():
    events = Events()
    events.job("last", "one", tokens=1)
    events.run()
    assert events.active[:3] == [0, 1, 0]


@pytest.mark.parametrize(("adapter", "times"), [("one", 0), ("large", 1), (None, 0)])
def test_the_engine_lets_go_of_what_a_put_may_take(adapter, times):
    """Of an adapter that is in no slot; one that is there is not put."""
    events = Events()
    events.job("last", adapter)
    events.run()
    assert events.engine.let_gone == times


def test_they_outlive_steps_that_fail():
    events = Events()
    events.job("a", "one", prompt=14)
    events.job("last", "two")
    assert events.run() == [
        *(("a", "starts"), ("a", "step_failed"), ("last", "starts"), ("last", "length")),
    ]


@pytest.mark.parametrize(
    ("adapter", "prompt", "status", "code", "why"),
    [
        ("two", 13, 500, "step_failed", "the failed step"),
        ("two", 15, 503, "adapter_unusable", "are not numbers"),
        (None, 15, 500, "step_failed", "are not numbers"),
    ],
)
def test_the_log_says_whose_job_has_failed(caplog, adapter, prompt, status, code, why):
    """So is a client told of its adapter, where the base alone may be sound."""
    events, whose = Events(), f"the adapter '{adapter}'" if adapter else "the base"
    events.job("last", adapter, prompt=prompt)
    assert events.run()[-1] == ("last", code)
    said, error = caplog.records[-1].getMessage(), events.seen[-1][1].error
    assert whose in said and why in said and error.status == status
    assert (f"{whose} cannot be used: its outputs {why}" in error.message) == (status == 503)


def test_an_abort_ends_them():
    events = Events()
    events.job("a", "one", tokens=99)
    events.job("loads", "slow")
    events.job("last", "two")
    events.thread.abort(unavailable("the server ends", "draining"))
    *ends, last = events.run()[1:]
    assert {*ends, last} == {(name, "draining") for name in ("a", "loads", "last")}
