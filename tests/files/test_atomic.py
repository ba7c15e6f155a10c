"""A file or a folder that is replaced or made is there whole, or not at all."""

import concurrent.futures
import errno
import os
import signal

import commands
import pytest

from lora_jax.files import full_disk
from lora_jax.files.atomic import new_folder, write_atomically


def test_writers_of_one_process_do_not_disturb_each_other(tmp_path):
    """Nor do those of several machines, whose processes can have one number."""
    path, contents = tmp_path / "new" / "file", [bytes([n]) * 100_000 for n in range(4)]

    def replace(content: bytes) -> None:
        for _ in range(10):
            write_atomically(path, content)
            assert path.read_bytes() in contents

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(replace, contents))
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_new_folder_appears_at_the_end(tmp_path):
    out = tmp_path / "a" / "out"
    for _ in range(2):
        with new_folder(out) as inside:
            (inside / "file").write_text("content")
            assert not (out / "file").exists()
        assert [path.name for path in out.iterdir()] == ["file"]
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        (out / "file").unlink()  # an empty folder is as good as none


def test_nothing_remains_of_one_that_fails(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "out") as inside:
        (inside / "file").write_text("content")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_replaced(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path, said in ((tmp_path, "is not empty"), (tmp_path / "file", "is a file")):
        with pytest.raises(ValueError, match=said), new_folder(path):
            raise AssertionError
    assert (tmp_path / "file").read_text() == "mine"


def test_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "out")
    with pytest.raises(ValueError, match="is a mount point"), new_folder(tmp_path / "out"):
        raise AssertionError


def test_a_full_disk_leaves_nothing_to_go_on_from(tmp_path):
    """Also where a library, or a part that could go on, reports it."""
    quoted = RuntimeError(f"cannot write: {os.strerror(errno.ENOSPC)}")
    for error in (quoted, full_disk.FullDiskError(tmp_path / "out/part")):
        said = pytest.raises(OSError, match=r"out: .* is full, .* begins anew$")
        with said as raised, new_folder(tmp_path / "out"):
            raise error
        assert "goes on" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_killed_leaves_nothing_for_long(tmp_path):
    """The next one takes its folder away; that of a living process stays."""
    started = commands.Started("tests/support/slow_folder.py", tmp_path / "out")
    while "begun" not in started.said():
        assert started.running
    (living,) = tmp_path.iterdir()
    with new_folder(tmp_path / "out"):
        assert living.is_dir()
    (tmp_path / "out").rmdir()
    started.send(signal.SIGKILL)
    assert started.end().returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == [living]
    with new_folder(tmp_path / "out"):
        assert not living.exists()
