"""What trackers get of a run, what a broken one costs, and what is wrong with --track."""

import math
import re
import sys
import threading
from pathlib import Path

import commands
import pytest
from own_trackers import recorder

from experiments.tracking import trackers, tracking
from experiments.tracking.track_flag import checked
from experiments.tracking.tracker import TrackedRun
from experiments.tracking.tracking import Track, Tracking
from lora_jax.records.metrics_log import Metrics, read_metrics

NAME = "own_trackers.recorder"
CONFIG = {"experiment": "cola: first try", "variant": {"name": "lora", "rank": math.inf}}


def train(log, steps):
    """Two lines of each step, such as training and evaluation write."""
    for step in steps:
        log.write(step, {"loss": 1 / step, "note": "no number"})
        log.write(step, {"accuracy": math.nan if step == 2 else float(step)})


def by_step(rows):
    """All values of each step in one row; a value that comes twice is an error."""
    found = {}
    for row in rows:
        mine = found.setdefault(row["step"], {})
        scalars = row.get("scalars", {k: v for k, v in row.items() if k not in ("step", "note")})
        assert not mine.keys() & scalars.keys()
        mine.update(scalars)
    return found


def written(folder):
    """What the recorder got: values by step, and its other lines."""
    rows = recorder.read(folder / "tracking" / NAME)
    return by_step(row for row in rows if "step" in row), [row for row in rows if "step" not in row]


def in_file(folder):
    return by_step(read_metrics(folder / "metrics.jsonl"))


def begun_in(tracked, folder, steps=(), number=0):
    """The open metrics of a run that has begun, with some steps."""
    log = tracked.metrics(number, folder, True)
    log.truncate(0)
    train(log, steps)
    return log


def test_trials_are_runs_and_one_that_goes_on_has_no_value_twice(tmp_path):
    """One completes, and the other goes on in a second process from step 3."""
    group, picture = tmp_path / "cola", tmp_path / "ranks.png"
    folders = {0: group / "trials" / "a", 1: group / "trials" / "b"}
    track = Track((NAME,), group, group / "trials")
    with pytest.raises(SystemExit), Tracking(track, folders, {0: CONFIG, 1: CONFIG}) as both:
        for number, folder in folders.items():
            begun_in(both, folder, range(1, 6), number)
        both.write(0, 5, {"bleu": 0.5}, {"ranks": picture})
        where = both.where(0)
        both.end(0, "completed")
        raise SystemExit(75)
    with Tracking(track, {1: folders[1]}, {1: CONFIG}) as alone:
        log = alone.metrics(1, folders[1], True)
        log.truncate(3)
        train(log, range(4, 8))
        alone.end(1, "failed")
    found, (begun, ended) = written(folders[0])
    expected = in_file(folders[0])
    expected[5]["bleu"] = 0.5
    assert repr(found) == repr(expected)  # NaN is not equal to itself
    assert list(found) == [1, 2, 3, 4, 5] and math.isnan(found[2]["accuracy"])
    assert (begun["begun"], begun["group"], begun["at"]) == ("a", "cola", 0)
    assert ended == {"ended": "completed"}
    assert where == {NAME: f"own://{begun['identity']}"}
    last = recorder.read(folders[0] / "tracking" / NAME)[-2]
    assert last["images"] == {"ranks": str(picture)}

    found, (first, preempted, second, failed) = written(folders[1])
    assert repr(found) == repr(in_file(folders[1])) and list(found) == [1, 2, 3, 4, 5, 6, 7]
    assert begun["identity"] != first["identity"] == second["identity"]
    assert (first["at"], second["at"]) == (0, 3)
    assert (preempted["ended"], failed["ended"]) == ("preempted", "failed")


def test_what_a_tracker_lacks_it_gets_when_the_run_goes_on(tmp_path):
    """Of a process that was killed at the evaluation of step 3."""
    with Metrics(tmp_path) as log:
        train(log, [1, 2])
        log.write(3, {"loss": 1 / 3})
    with Tracking(Track((NAME,)), {0: tmp_path}, {0: CONFIG}) as tracked:
        log = tracked.metrics(0, tmp_path, True)
        log.truncate(2)
        train(log, [3, 4])
        tracked.end(0, "completed")
    assert repr(written(tmp_path)[0]) == repr(in_file(tmp_path))


def test_rungs_of_a_halving_are_one_run_of_a_tracker(tmp_path):
    """Each opens the metrics again, where the rung before it has left them."""
    with Tracking(Track((NAME,)), {0: tmp_path}, {0: CONFIG}) as tracked:
        for last, step in ((0, 2), (2, 4), (4, 8)):
            with tracked.metrics(0, tmp_path, True) as log:
                log.truncate(last)
                train(log, range(last + 1, step + 1))
        tracked.end(0, "completed")
    found, (begun, ended) = written(tmp_path)
    assert list(found) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (begun["at"], ended["ended"]) == (0, "completed")


@pytest.mark.parametrize(
    "misbehaves, says",
    [
        ("begin", "RuntimeError: no room for this run"),
        ("write", "RuntimeError: no room for this row"),
        ("exit", "SystemExit: 3"),
        ("hang", "it was too slow at the end of the run, and was left"),
    ],
)
def test_a_broken_tracker_costs_one_line(misbehaves, says, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OWN_TRACKER", misbehaves)
    with Tracking(Track((NAME,)), {0: tmp_path}, {0: CONFIG}) as tracked:
        begun_in(tracked, tmp_path, range(1, 40))
        assert tracked.where(0) is not None  # waits until it has begun
        monkeypatch.setattr(tracking, "WAIT", 0.1 if misbehaves == "hang" else 60)
        tracked.end(0, "completed")
    assert capsys.readouterr().err.splitlines() == [
        f"warning: --track={NAME}: {says}; the run goes on without it, and metrics.jsonl has all"
    ]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2 * 39


def test_a_tracker_that_hangs_as_it_begins_costs_one_line(tmp_path, monkeypatch, capsys):
    hangs = property(lambda _: threading.Event().wait())
    monkeypatch.setattr(recorder.OwnTracker, "where", hangs)
    monkeypatch.setattr(tracking, "WAIT", 0.1)
    with Tracking(Track((NAME,)), {0: tmp_path}, {0: CONFIG}) as tracked:
        begun_in(tracked, tmp_path)
        assert tracked.where(0) == {}
        tracked.end(0, "completed")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: --track={NAME}: it is too slow to begin the run; ")


def test_an_error_ends_the_tracking_of_one_run(tmp_path, monkeypatch):
    true_write = recorder.OwnTracker.write

    def write(self, *values):
        if self.run.name == "a":
            raise KeyError("row")
        true_write(self, *values)

    monkeypatch.setattr(recorder.OwnTracker, "write", write)
    folders = {0: tmp_path / "a", 1: tmp_path / "b"}
    with Tracking(Track((NAME,)), folders, {0: CONFIG, 1: CONFIG}) as tracked:
        for number, folder in folders.items():
            begun_in(tracked, folder, [1, 2], number)
        for number in folders:
            tracked.end(number, "completed")
    assert [len(written(folder)[1]) for folder in folders.values()] == [1, 2]
    assert list(written(folders[1])[0]) == [1, 2]


@pytest.mark.parametrize(
    "where, found",
    [("Path('/a/b')", {NAME: "/a/b"}), ("None", {}), ("'/a/\\udcff'", {NAME: "/a/?"})],
)
def test_whatever_a_tracker_says_of_its_place_is_text(where, found, tmp_path, monkeypatch):
    """A record takes no other value: the run would fail after its last step."""
    monkeypatch.setenv("OWN_WHERE", where)
    with Tracking(Track((NAME,)), {0: tmp_path}, {0: CONFIG}) as tracked:
        begun_in(tracked, tmp_path)
        assert tracked.where(0) == found
        tracked.end(0, "completed")
    assert written(tmp_path)[1][-1] == {"ended": "completed"}


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


@pytest.mark.parametrize(
    "error, status",
    [(SystemExit, "preempted"), (RuntimeError, "failed"), (KeyboardInterrupt, "killed")],
)
def test_a_run_that_is_left_without_an_end_gets_one(error, status, tmp_path, monkeypatch):
    """In the current folder, whose name it has."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error), Tracking(Track((NAME,)), {0: Path()}, {0: CONFIG}) as tracked:
        begun_in(tracked, Path())
        raise error
    _, (begun, ended) = written(tmp_path)
    assert begun["begun"] == tmp_path.name
    assert ended == {"ended": status}


def test_without_trackers_nothing_is_started(tmp_path):
    before = threading.active_count()
    for track, enabled in ((Track(), True), (Track((NAME,)), False)):
        with Tracking(track, {0: tmp_path}, {0: CONFIG}, enabled) as tracked:
            assert type(tracked.metrics(0, tmp_path, enabled)) is Metrics
            assert tracked.where(0) is None
            tracked.end(0, "completed")
            assert threading.active_count() == before
    assert {path.name for path in tmp_path.iterdir()} <= {"metrics.jsonl"}


def test_trackers_are_found_without_their_libraries(tmp_path, monkeypatch):
    assert trackers.TRACKERS.keys() == {"mlflow", "tensorboard", "trackio", "wandb"}
    assert not trackers.is_installed("no_such_package.inside")
    assert trackers.is_installed("email.message") and trackers.is_installed("")
    (tmp_path / "slow_library.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert trackers.is_installed("slow_library") and "slow_library" not in sys.modules
    monkeypatch.setattr(trackers, "is_installed", lambda package: True)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)  # of another test
    assert checked(["wandb", NAME]) == ("wandb", NAME) and "wandb" not in sys.modules


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["tensorbord"], "tensorbord is not a tracker; nearest: 'tensorboard'"),
        (
            ["own_trackers.recordr"],
            "own_trackers.recordr: ModuleNotFoundError: No module named 'own_trackers.recordr'",
        ),
        (
            ["own_trackers.nothing"],
            "own_trackers.nothing: ValueError: 'own_trackers.nothing' must define one Tracker",
        ),
        (["raising_trackers.exits"], "raising_trackers.exits: SystemExit: 0"),
        ([NAME, NAME], f"{NAME},{NAME} names '{NAME}' twice"),
        (["wandb"], 'wandb needs wandb, which is not installed: pip install "lora-jax[wandb]"'),
    ],
)
def test_what_is_wrong_is_one_line(names, said, tmp_path, monkeypatch):
    """A module that exits must not end the command as if all were well."""
    (tmp_path / "raising_trackers").mkdir()
    (tmp_path / "raising_trackers" / "exits.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(trackers, "is_installed", lambda package: not package)
    with pytest.raises(ValueError) as error:
        checked(names)
    assert str(error.value).startswith(f"--track={said}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--config=configs/quickstart.py:size=smoke"),
        ("sweep", "--config=configs/quickstart.py:size=smoke", "--sweep=config.seed=0:2"),
        ("tune", "--study=against_lora"),
    ],
    ids=lambda each: each[0],
)
def test_commands_say_so_before_they_begin(command, tmp_path):
    name, *flags = command
    workdir = tmp_path / "run"
    done = commands.run(f"experiments.{name}", *flags, f"--workdir={workdir}", "--track=tensorbord")
    assert done.returncode == 1 and not workdir.exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --track=tensorbord is not a tracker; nearest: 'tensorboard'")
