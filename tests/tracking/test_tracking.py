"""What trackers get of a run, also of one that is killed, and what a broken tracker costs."""

import math
import re
import sys
from pathlib import Path
from unittest import mock

import pytest
from own_trackers import recorder

from experiments.tracking import child, tracking
from experiments.tracking.tracker import TrackedRun
from experiments.tracking.tracking import Track, Tracking
from lora_jax.records.metrics_log import Metrics, read_metrics

NAME = "own_trackers.recorder"
CONFIG = {"experiment": "cola: first try", "variant": {"name": "lora", "rank": math.inf}}


def values(step):
    """Two lines of a step, such as training and evaluation write."""
    return {"loss": 1 / step}, {"accuracy": math.nan if step == 2 else float(step)}


def train(log, steps):
    for step in steps:
        for each in values(step):
            log.write(step, each)


def by_step(rows):
    """All values of each step in one row; a value that comes twice is an error."""
    found = {}
    for row in rows:
        mine = found.setdefault(row["step"], {})
        scalars = row.get("scalars", {k: v for k, v in row.items() if k != "step"})
        assert not mine.keys() & scalars.keys()
        mine.update(scalars)
    return found


def written(folder):
    """What the recorder got: values by step, and its other lines."""
    rows = recorder.read(folder / "tracking" / NAME)
    told = [row for row in rows if "step" not in row]
    return by_step(row for row in rows if "step" in row), told, rows


def same(one, two):
    return repr(one) == repr(two)  # NaN is not equal to itself


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two runs of a group: one completes, the other goes on in a second process from step 3."""
    group = tmp_path_factory.mktemp("cola")
    folders = {0: group / "trials" / "a", 1: group / "trials" / "b"}
    track = Track((NAME,), group, group / "trials")
    picture = group / "ranks.png"
    with pytest.raises(SystemExit), Tracking(track, folders, {0: CONFIG, 1: CONFIG}) as both:
        logs = [both.metrics(number, folder, True) for number, folder in folders.items()]
        for log in logs:
            log.truncate(0)
            train(log, range(1, 6))
        both.write(0, 5, {"bleu": 0.5}, {"ranks": picture})
        where = both.where(0)
        both.end(0, "completed")
        raise SystemExit(75)
    with Tracking(track, {1: folders[1]}, {1: CONFIG}) as alone:
        log = alone.metrics(1, folders[1], True)
        log.truncate(3)
        train(log, range(4, 8))
        alone.end(1, "failed")
    return folders, where, picture


def test_a_tracker_gets_all_rows_and_how_the_run_ended(sweep):
    folders, where, picture = sweep
    found, (begun, ended), rows = written(folders[0])
    expected = by_step(read_metrics(folders[0] / "metrics.jsonl"))
    assert list(expected) == [1, 2, 3, 4, 5] and math.isnan(expected[2]["accuracy"])
    expected[5]["bleu"] = 0.5
    assert same(found, expected)
    assert (begun["begun"], begun["group"], begun["at"]) == ("a", folders[0].parent.parent.name, 0)
    assert ended == {"ended": "completed"}
    assert where == {NAME: f"own://{begun['identity']}"}
    assert rows[-2]["images"] == {"ranks": str(picture)}


def test_a_run_goes_on_as_the_same_one_with_no_value_twice(sweep):
    folders, _, _ = sweep
    found, (first, preempted, second, failed), _ = written(folders[1])
    assert same(found, by_step(read_metrics(folders[1] / "metrics.jsonl")))
    assert list(found) == [1, 2, 3, 4, 5, 6, 7]
    assert first["identity"] == second["identity"] and (first["at"], second["at"]) == (0, 3)
    assert (preempted["ended"], failed["ended"]) == ("preempted", "failed")
    assert first["identity"] != written(folders[0])[1][0]["identity"]


def begun_in(tracked, folder, steps=()):
    """The open metrics of a run that has begun, with some steps."""
    log = tracked.metrics(0, folder, True)
    log.truncate(0)
    train(log, steps)
    return log


def test_rungs_of_a_halving_are_one_run_of_a_tracker(tmp_path):
    """Each opens the metrics again, where the rung before it has left them."""
    with Tracking(Track((NAME,)), {0: tmp_path}, {0: CONFIG}) as tracked:
        for last, step in ((0, 2), (2, 4), (4, 8)):
            with tracked.metrics(0, tmp_path, True) as log:
                log.truncate(last)
                train(log, range(last + 1, step + 1))
        tracked.end(0, "completed")
    found, (begun, ended), _ = written(tmp_path)
    assert list(found) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (begun["at"], ended["ended"]) == (0, "completed")


def opened(folder, step=0):
    """The order that opens a run."""
    place = str(folder / "tracking" / NAME)
    run = {"name": "run", "group": "", "project": "p", "config": {}, "restored": step}
    run |= {"folder": place, "store": place}
    return {"number": 0, "open": run, "metrics": str(folder / "metrics.jsonl")}


def obeyed(*orders):
    said = []
    child.obey(recorder.OwnTracker, orders, lambda **answer: said.append(answer))
    return said


def test_a_killed_run_is_made_up_for_when_it_goes_on(tmp_path):
    with Metrics(tmp_path) as log:
        train(log, [1, 2])
        log.write(3, values(3)[0])  # killed at the evaluation of step 3
        obeyed(opened(tmp_path), {})
        assert written(tmp_path)[1][-1] == {"ended": "killed"}
        assert written(tmp_path)[0][3] == {"loss": 1 / 3}
        log.truncate(2)
        train(log, [3, 4])
    obeyed(opened(tmp_path, 2), {}, {"number": 0, "end": "completed"})
    assert same(written(tmp_path)[0], by_step(read_metrics(tmp_path / "metrics.jsonl")))


def test_an_error_ends_the_tracking_of_one_run(tmp_path, monkeypatch):
    for name in "ab":
        with Metrics(tmp_path / name) as log:
            train(log, [1])
    orders = [opened(tmp_path / "a"), {**opened(tmp_path / "b"), "number": 1}]
    monkeypatch.setattr(
        recorder.OwnTracker, "end", lambda self, status: self._path.unlink() or {}["status"]
    )
    said = obeyed(*orders, {"number": 0, "end": "completed"}, {"number": 0, "end": "failed"})
    assert [each.get("failed") for each in said] == [None, None, *2 * ["KeyError: 'status'"]]
    assert [each["number"] for each in said] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "misbehaves, says",
    [
        ("begin", "RuntimeError: no room for this run"),
        ("write", "RuntimeError: no room for this row"),
        ("hang", "it was too slow at the end of the run, and was ended"),
        ("die", "its process was ended by SIGKILL"),
        ("mute", "its process has closed its pipe"),  # and lives: nobody waits for its end
    ],
)
def test_a_broken_tracker_costs_one_line(misbehaves, says, tmp_path, monkeypatch, capfd):
    """Also with more orders than a pipe holds."""
    monkeypatch.setenv("OWN_TRACKER", misbehaves)
    monkeypatch.setattr(tracking, "LAST_BREATH", 0.3 if misbehaves == "mute" else 60)
    folder = tmp_path / "run"
    with Tracking(Track((NAME,)), {0: folder}, {0: CONFIG}) as tracked:
        begun_in(tracked, folder, range(1, 40))
        tracked.where(0)  # waits until the child has begun
        for step in range(50):
            tracked.write(0, step, {"long " * 1000: 1.0})
        monkeypatch.setattr(tracking, "WAIT", 0.1 if misbehaves == "hang" else 60)
        tracked.end(0, "completed")
    (line,) = capfd.readouterr().err.splitlines()
    file = folder / "tracking" / f"{NAME}.log"
    assert line == (
        f"warning: --track={NAME}: {says}; the run goes on without it, and metrics.jsonl has all "
        f"(see {file})"
    )
    assert len(read_metrics(folder / "metrics.jsonl")) == 2 * 39


@pytest.mark.parametrize(
    "where, found",
    [
        ("Path('/a/b')", {NAME: "/a/b"}),
        ("5", {NAME: "5"}),
        ("None", {}),
        ("'/a/\\udcff'", {NAME: "/a/?"}),
    ],
)
def test_whatever_a_tracker_says_of_its_place_is_text(where, found, tmp_path, monkeypatch):
    """A record takes no other value: the run would fail after its last step."""
    monkeypatch.setenv("OWN_WHERE", where)
    with Tracking(Track((NAME,)), {0: tmp_path}, {0: CONFIG}) as tracked:
        begun_in(tracked, tmp_path)
        assert tracked.where(0) == found
        tracked.end(0, "completed")
    assert written(tmp_path)[1][-1] == {"ended": "completed"}


@pytest.mark.parametrize("said", ["5", "{}", '{"where": "x"}', "[", "\\377", None])
def test_a_child_that_is_no_tracker_does_not_end_the_run(said, tmp_path, monkeypatch, capfd):
    """It says something else, or cannot be started."""
    program = tmp_path / "program"
    if said is not None:
        program.write_text(f"#!/bin/sh\nprintf '{said}\\n'\nexec cat >/dev/null\n")
        program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    with Tracking(Track((NAME,)), {0: tmp_path}, {0: CONFIG}) as tracked:
        begun_in(tracked, tmp_path, [1])
        assert tracked.where(0) == {}
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"warning: --track={NAME}: ")


def test_more_orders_than_a_pipe_holds_arrive_in_order(tmp_path):
    names = [f"{number} " * 4096 for number in range(20)]
    with Tracking(Track((NAME,)), {0: tmp_path}, {0: CONFIG}) as tracked:
        begun_in(tracked, tmp_path)
        for name in names:
            tracked.write(0, 1, {name: 1.0})
        tracked.end(0, "completed")
    assert [*written(tmp_path)[0][1]] == names


@pytest.mark.parametrize("left", ["", "0123", "no identity\n"])
def test_an_identity_is_never_empty_and_no_others(left, tmp_path):
    """A full disk or a killed process may leave such a file."""
    found = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "identity").write_text(left)
        run = TrackedRun("run", "", "p", {}, tmp_path / name, tmp_path)
        assert re.fullmatch("[0-9a-f]{16}", run.identity)
        found.add(run.identity)
        assert TrackedRun("run", "", "p", {}, tmp_path / name, tmp_path).identity == run.identity
    assert len(found) == 2


@pytest.fixture
def process(monkeypatch):
    """Stands in for the child process of a tracker."""
    made = mock.Mock()
    made.name = NAME
    monkeypatch.setattr(tracking, "TrackerProcess", lambda *_: made)
    return made


def test_a_run_in_the_current_folder_has_its_name(process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Tracking(Track((NAME,)), {0: Path()}, {0: CONFIG}) as tracked:
        begun_in(tracked, Path())
        assert process.send.call_args.kwargs["open"]["name"] == tmp_path.name


@pytest.mark.parametrize(
    "error, status",
    [(SystemExit, "preempted"), (RuntimeError, "failed"), (KeyboardInterrupt, "killed")],
)
def test_a_run_that_is_left_without_an_end_gets_one(error, status, process, tmp_path):
    with pytest.raises(error), Tracking(Track((NAME,)), {0: tmp_path}, {0: CONFIG}) as tracked:
        begun_in(tracked, tmp_path)
        raise error
    assert process.send.call_args == mock.call(0, end=status)
    process.close.assert_called_once()


def test_without_trackers_nothing_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    for track, enabled in ((Track(), True), (Track((NAME,)), False)):
        with Tracking(track, {0: tmp_path}, {0: CONFIG}, enabled) as tracked:
            assert type(tracked.metrics(0, tmp_path, enabled)) is Metrics
            assert tracked.where(0) is None
            tracked.end(0, "completed")
    assert {path.name for path in tmp_path.iterdir()} <= {"metrics.jsonl"}


def test_rows_are_read_as_they_are_completed(tmp_path):
    path, tracker = tmp_path / "metrics.jsonl", mock.Mock()
    tracker.last.return_value = {}
    lines = [b'{"step": 1, "loss": 2, "note": "x", "crc32": "12345678"}\n', b'{"step": 2, ']
    lines += [b'"loss": "-Infinity"}\n{"step"', b': 3, "done": true}\n']
    with path.open("wb", buffering=0) as file:
        run, counts = child.FollowedRun(tracker, path), []
        for line in lines:
            file.write(line)
            run.look()
            counts.append(tracker.write.call_count)
        run.end("completed")
    assert counts == [0, 0, 1, 2]  # a step is whole when the next one begins
    written = [(each.args[0], each.args[1]) for each in tracker.write.call_args_list]
    assert written == [(1, {"loss": 2.0}), (2, {"loss": -math.inf})]
