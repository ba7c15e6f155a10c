"""One process at a time trains in a folder; what a dead one leaves there is no lock."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time

import fake_records
import pytest

from configs import glue
from experiments.runs import run
from experiments.runs.folder_lock import HeldFolder, alone, alone_in
from experiments.runs.group_folder import GroupFolder
from experiments.setup.config import parse
from lora_jax.records import run_record
from lora_jax.records.metrics_log import LostFolderError

HOLDER = """
import fcntl, os, sys
with open(sys.argv[1], "a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print(f"process {os.getpid()} on here", file=file, flush=True)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def no_grace(monkeypatch):
    monkeypatch.setattr("experiments.runs.folder_lock.GRACE", 0.0)


@pytest.fixture
def holder(tmp_path):
    """The folder that another process, which is given too, has taken."""
    folder = tmp_path / "taken"
    folder.mkdir()
    command = [sys.executable, "-S", "-c", HOLDER, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield folder, process
        process.kill()


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_another_process_is_named_and_when_it_is_killed_its_lock_is_gone(holder):
    folder, process = holder
    with pytest.raises(ValueError, match=rf"--workdir .*taken: process {process.pid} on here is"):
        alone(folder).__enter__()
    assert process.poll() is None and names(folder) == [".lock"]
    process.kill()
    process.wait()
    with alone(folder):
        assert (folder / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(ValueError, match=f"process {os.getpid()} on .* is training there"):
            alone(folder).__enter__()
    assert names(folder) == []


def test_what_a_dying_process_lets_go_of_in_a_moment_is_got(tmp_path, monkeypatch):
    dying = alone(tmp_path)
    dying.__enter__()
    monkeypatch.setattr("experiments.runs.folder_lock.GRACE", 60.0)
    monkeypatch.setattr(time, "sleep", lambda _: dying.__exit__(None, None, None))
    with alone(tmp_path):
        assert names(tmp_path) == [".lock"]


def test_only_what_is_empty_and_was_made_is_removed(tmp_path):
    with alone(tmp_path / "a" / "b"):
        assert names(tmp_path) == [".lock", "a", "b"]
    assert names(tmp_path) == []
    with alone(tmp_path / "a" / "b"):
        (tmp_path / "a" / "c").touch()
    assert names(tmp_path) == ["a", "c"]
    with alone(tmp_path / "a"), pytest.raises(ValueError, match="c is a file: name a folder"):
        alone(tmp_path / "a" / "c").__enter__()
    assert names(tmp_path) == ["a", "c"]


def test_a_lock_that_was_removed_since_it_was_opened_is_none(tmp_path, monkeypatch):
    """As where the process that had it ends between this one's opening and its locking."""
    true, calls = fcntl.flock, []

    def slow(file, how):
        if not calls:
            (tmp_path / ".lock").unlink()
        calls.append(how)
        true(file, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with alone(tmp_path), pytest.raises(ValueError, match="is training there"):
        alone(tmp_path).__enter__()
    assert len(calls) > 2


def test_who_removes_the_lock_lets_no_second_process_in(tmp_path):
    folder = tmp_path / "run"
    with alone(folder):
        (folder / ".lock").unlink()
        for _ in range(2):
            with pytest.raises(ValueError, match="run: another process is training there"):
                alone(folder).__enter__()
    with alone(folder):
        assert (folder / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_who_removes_the_folder_ends_the_run_that_was_there(tmp_path):
    folder = tmp_path / "run"
    with alone(folder):
        held = HeldFolder(folder)
        held.require()
        (folder / ".lock").unlink()  # which lets nobody in
        held.require()
        shutil.rmtree(folder)
        for _ in range(2):
            with pytest.raises(LostFolderError, match="run was removed or replaced during its run"):
                held.require()
            folder.mkdir(exist_ok=True)
        with alone(folder):
            HeldFolder(folder).require()


def test_a_file_system_without_locks_is_trained_on(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with alone(tmp_path), alone(tmp_path):
        pass
    assert names(tmp_path) == []


def config_of(arg):
    return parse(glue.get_config(arg).to_dict())


def test_a_run_leaves_the_folder_of_another_alone_but_reads_a_completed_one(holder, monkeypatch):
    folder, _ = holder
    monkeypatch.setattr(run, "build", None)  # at once, before anything is made
    config = config_of("task=sst2")
    run_record.claim(
        folder, config.plain
    )  # what a killed process left of its lock is no run's file
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"--workdir .*taken: process \d+ on here is training"):
        run.run(config, folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    record = fake_records.write(folder, "glue", "task=sst2", {"accuracy": 0.5})
    assert run.run(config, folder) == record


def test_a_busy_trial_is_left_out_of_its_group(holder, monkeypatch):
    folder, _ = holder
    folders = [folder.parent / name for name in ("one", "taken", "two")]
    configs = [config_of(f"task=sst2,seed={seed}") for seed in range(3)]
    built = []

    def build(config, *_, **__):
        built.append(config.seed)
        raise RuntimeError("built")

    monkeypatch.setattr(run, "read_texts", lambda *_: "read")
    monkeypatch.setattr(run, "with_room", lambda texts, *_: texts)
    monkeypatch.setattr(run, "load", lambda *_, **__: "loaded")
    monkeypatch.setattr(run, "build", build)
    found = [str(each) for each in run.run_together(configs, folders)]
    assert "is training there" in found[1] and found[::2] == ["built"] * 2
    assert built == [0, 2]
    assert names(folder) == [".lock"]


def test_checkpoints_of_a_group_that_another_process_trains_are_left_to_it(tmp_path):
    configs = [config_of(f"task=sst2,seed={seed}") for seed in range(2)]
    folders = [tmp_path / "one", tmp_path / "two"]
    home = GroupFolder.of(configs, folders)
    home.begin([0, 1])
    with alone(home.path):
        found = run.run_together(configs, folders)
    assert ["is training there" in str(each) for each in found] == [True] * 2
    assert home.trials == [0, 1]


def test_which_folders_are_busy_is_told_by_number(holder):
    folder, _ = holder
    free = folder.parent / "free"
    with alone_in([free, folder]) as busy:
        assert [*busy] == [1]
        with pytest.raises(ValueError, match="is training there"):
            alone(free).__enter__()
