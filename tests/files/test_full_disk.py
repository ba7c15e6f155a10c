"""A full disk is one line that names the file; what was saved is good, and a run goes on."""

import errno
import io
import logging
import os
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.runs.folder_lock import alone
from lora_jax.files import full_disk
from lora_jax.files.atomic import write_atomically
from lora_jax.files.full_disk import FullDiskError
from lora_jax.records.metrics_log import Metrics, read_metrics
from lora_jax.training.checkpoint import Checkpoints

WRAPPED = "RESOURCE_EXHAUSTED: Failed to write 8 bytes to file 17: No space left on device [28]"
STATE = {"w": np.arange(4.0)}


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def said(error):
    text = str(error.value)
    assert "\n" not in text and error.value.errno == errno.ENOSPC
    name, _, rest = text.partition(
        ": the disk or a quota is full; what was saved before is good: make room"
    )
    assert rest
    return name


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_file_that_has_no_room_is_named_and_the_old_one_stays(tmp_path, monkeypatch, where):
    path = tmp_path / "record.json"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch, pytest.raises(FullDiskError) as error:
        if where == "write":
            patch.setattr(type(path), "open", lambda *_: Full())
        else:
            patch.setattr(os, where, no_space)
        write_atomically(path, b"new")
    assert said(error) == str(path)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"old"]


class Full(io.BytesIO):
    """An open file that takes nothing."""

    write = no_space


def test_other_errors_stay_what_they_are(tmp_path):
    error = OSError(errno.EACCES, "Permission denied")
    with pytest.raises(OSError) as raised, full_disk.naming(tmp_path):
        raise error
    assert raised.value is error and not full_disk.is_full(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        ValueError(WRAPPED),
    ],
)
def test_a_full_disk_is_known_whatever_wraps_it(tmp_path, error):
    def wrapped():
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("could not save") from cause

    outer, inner = full_disk.naming(tmp_path), full_disk.naming(tmp_path / "inner")
    with pytest.raises(FullDiskError) as raised, outer, inner:
        wrapped()
    assert said(raised) == str(tmp_path / "inner")  # the nearest name is the one


def test_a_part_of_a_line_is_finished_or_dropped(tmp_path, monkeypatch):
    """A disk that is almost full takes a part of what is written, and says only how much."""
    with Metrics(tmp_path) as metrics:
        metrics.write(1, {"loss": 0.5})
        true = metrics._file
        taken = iter([3, 5, 10**6])
        write = lambda data: true.write(data[: next(taken)])  # noqa: E731
        few = SimpleNamespace(write=write, close=true.close, fileno=true.fileno)
        monkeypatch.setattr(metrics, "_file", few)
        metrics.write(2, {"loss": 0.25})
        taken = iter([4])
        metrics._file.write = lambda data: true.write(data[: next(taken, 0)]) or no_space()
        with pytest.raises(FullDiskError) as error:
            metrics.write(3, {"loss": 0.125})
        assert said(error) == str(metrics.path)
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    assert metrics.path.read_bytes()[-5:] == b'\n{"st'
    with Metrics(tmp_path) as metrics:
        metrics.write(3, {"loss": 0.125})
    assert read_metrics(metrics.path) == [*rows, {"step": 3, "loss": 0.125}]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), ValueError(WRAPPED)])
def test_a_checkpoint_that_has_no_room_is_named_and_the_last_one_is_good(
    tmp_path, monkeypatch, error
):
    def fails(*_, **__):
        raise error

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, STATE)
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, "save", fails)
            checkpoints.save(2, STATE)
            with pytest.raises(FullDiskError) as raised:
                checkpoints.wait()
        assert said(raised) == str(tmp_path / "2")
        restored = checkpoints.restore(STATE)
        assert restored is not None
        state, _, step = restored
        assert step == 1 and (state["w"] == STATE["w"]).all()
        assert checkpoints.save(2, STATE)
    assert Checkpoints(tmp_path).steps() == [1, 2]


@pytest.fixture(autouse=True)
def own_filters(monkeypatch):
    for name in ("absl", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "filters", [])


@pytest.fixture
def logged(monkeypatch):
    """What gets through to a handler of the logger that Orbax writes to."""
    messages, handler = [], logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    monkeypatch.setattr(logging.getLogger("absl"), "handlers", [handler])
    return messages


def log(message, error):
    logging.getLogger("absl").error(message, exc_info=error)


def test_threads_that_meet_it_log_nothing_and_everything_else_is_logged(logged):
    full = OSError(errno.ENOSPC, "No space left on device")
    with full_disk.quiet():
        log("full", full)
        log("broken", ValueError("broken"))
    log("full again", full)
    assert logged == ["broken", "full again"]
    with pytest.raises(OSError), full_disk.quiet():
        raise full
    log("later thread", full)
    log("broken", None)
    assert logged == ["broken", "full again", "broken"]


def test_a_lock_needs_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", no_space)
    with alone(tmp_path), pytest.raises(ValueError, match="another process is training there"):
        alone(tmp_path).__enter__()
