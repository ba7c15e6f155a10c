"""Worker processes divide a machine's cores, and what ends one of them does not end the others."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import launcher_contract
import pytest
from launcher_contract import stub
from quickstart_sweep import made, sweep, trained_one

from experiments.sweeps import jobs, worker_process
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.launchers import local

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def launched(tmp_path, specs, machine, size=1):
    folder, found = launcher_contract.sweep(tmp_path, *specs)
    local.launch(jobs.make(found, size), folder, machine, lambda: None, stub)
    calls = folder.path / "calls"
    lines = calls.read_text().splitlines() if calls.exists() else []
    return folder, found, [json.loads(line) for line in lines]


def test_a_worker_that_is_killed_takes_one_trial_with_it(tmp_path):
    """Of a job of four, and one that cannot begin is not begun for ever."""
    machine = [local.Slot({}, ())]
    folder, found, calls = launched(tmp_path, ["config.seed=0:6"], machine, size=4)
    states = {trial.name: folder.state(trial) for trial in found}
    assert {name: each.status for name, each in states.items()} == {
        "seed=0": "completed",
        "seed=1": "killed",
        "seed=2": "failed",
        "seed=3": "completed",
        "seed=4": "completed",
        "seed=5": "killed",
    }
    assert states["seed=1"].note.startswith("its process was ended by SIGKILL, as when memory")
    assert states["seed=5"].note == f"its process ended with code 1; {folder.log('seed=4')}"
    assert "ImportError: no such thing" in folder.log("seed=4").read_text()
    assert [name for name, *_ in calls] == ["seed=0", "seed=2", "seed=3", "seed=4"]
    assert len({process for _, process, *_ in calls}) == 3


def test_trials_that_are_halved_get_no_process_without_the_one_that_failed(tmp_path):
    folder, found = launcher_contract.sweep(tmp_path, "config.seed=5,3,4")
    local.launch([found], folder, [local.Slot({}, ())], lambda: None, stub, whole=True)
    states = [folder.state(trial) for trial in found]
    assert [each.status for each in states] == ["killed", "waiting", "waiting"]
    assert states[0].note == f"its process ended with code 1; {folder.log('seed=5')}"


@pytest.mark.parametrize(
    ("code", "others", "said"),
    [
        (3, 0, "its process ended with code 3"),
        (-15, 2, "its process, one with 2 other trials, was ended by SIGTERM"),
        (75, 1, "its process, one with another trial, was asked to end by SIGTERM, and saved "),
    ],
)
def test_what_ended_a_process(code, others, said):
    assert local.cause(code, others).startswith(said)


def test_trials_that_died_together_say_that_they_did(tmp_path):
    folder, found = sweep(tmp_path, "config.seed=0:4")
    for trial in found[:3]:
        folder.end(trial.name, "running", process=7)
    folder.end("seed=0", "completed", process=7)
    assert local.settle(found, folder, 7, -signal.SIGKILL) == found[3:]
    for trial in found[1:3]:
        said = folder.state(trial).note
        assert said.startswith("its process, one with another trial, was ended by SIGKILL, as when")


def test_a_job_that_no_process_has_begun_leaves_a_reason(tmp_path):
    """As of Ray where a machine cannot start it: its first trial has it, the others begin again."""
    folder, found = sweep(tmp_path, "config.seed=0:3")
    assert local.settle(found, folder, 0, 0, "its Ray task ended (OSError: no folder)") == found[1:]
    state = folder.state(found[0])
    assert (state.status, state.process) == ("killed", 0)
    assert state.note.startswith("its Ray task ended (OSError: no folder); ")
    assert {folder.state(trial).status for trial in found[1:]} == {"waiting"}
    trained_one(found[0].config, folder.run("seed=0"))  # by hand: its record has no process
    assert local.settle(found, folder, 0, 0, "again") == found[2:]
    assert [folder.state(trial).status for trial in found] == ["completed", "killed", "waiting"]


def test_the_command_leaves_a_diverged_trial_as_it_is_unless_asked(tmp_path):
    folder, (trial,) = sweep(tmp_path, "config.seed=2")
    trained_one(trial.config, folder.run(trial.name))
    record = folder.run(trial.name) / "record.json"
    before = record.read_bytes()
    # To train it again fails at once, as the folder has only a record.
    for flags, status in (([], "diverged"), (["--retry"], "failed")):
        line = [f"--workdir={folder.path}", f"--trial={trial.name}", *flags]
        done = commands.run("experiments.sweeps.worker", *line)
        assert (done.returncode, folder.state(trial).status) == (1, status), done.stderr
        assert record.read_bytes() == before


def test_what_each_process_gets(tmp_path):
    machine = [local.Slot({"CUDA_VISIBLE_DEVICES": str(n)}, (n, n + 2)) for n in range(2)]
    _, _, calls = launched(tmp_path, ["config.seed=3,4,6,7"], machine)
    assert sorted(name for name, *_ in calls) == ["seed=3", "seed=4", "seed=6", "seed=7"]
    assert {(cores, device) for *_, cores, device in calls} == {("0,2", "0"), ("1,3", "1")}


def test_jobs_that_are_fewer_than_slots_leave_no_core_idle(tmp_path):
    """As of a shard, with `--per_job`, or where one trial is left; each keeps a device."""
    machine = [local.Slot({"CUDA_VISIBLE_DEVICES": str(n)}, (n, n + 3)) for n in range(3)]
    for count in (3, 99, 0):
        assert local.fitted(machine, count) == machine
    assert [slot.cores for slot in local.fitted(machine, 2)] == [(0, 1, 2), (3, 4, 5)]
    assert local.fitted([local.Slot({}, ())] * 3, 1) == [local.Slot({}, ())]  # as on macOS
    _, _, calls = launched(tmp_path, ["config.seed=3,4"], machine, size=2)
    assert {(cores, device) for *_, cores, device in calls} == {("0,1,2,3,4,5", "0")}


def test_what_ends_the_launcher_ends_its_processes(tmp_path):
    folder, found = sweep(tmp_path, "config.seed=9")

    def watch():
        if folder.state(found[0]).status != "waiting":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local.launch([found], folder, [local.Slot({}, ())], watch, stub)
    process = json.loads((folder.path / "outcomes" / "seed=9.json").read_text())["process"]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert folder.state(found[0]).status == "interrupted"


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path):
    folder = SweepFolder(tmp_path)
    (trial,) = made("config.seed=9")
    code = (
        "import subprocess, sys, time\n"
        "subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, *stub(folder, [trial]), "--leash"])
    until = time.monotonic() + 60
    while not (text := read(tmp_path / "outcomes" / "seed=9.json")):
        assert time.monotonic() < until
        time.sleep(0.05)
    worker = json.loads(text)["process"]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while Path(f"/proc/{worker}").exists() and "Z" not in state(worker):
        assert time.monotonic() < until, "the worker outlived its parent"
        time.sleep(0.05)


def read(path):
    return path.read_text() if path.exists() else ""


def state(process):
    return read(Path(f"/proc/{process}/stat")).rpartition(")")[2][:3]


def test_cores_are_divided(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(local, "cores", lambda: [0, 1, 2, 5, 6])
    assert local.slots(None) == [local.Slot({}, (0, 1, 2, 5, 6))]
    assert [slot.cores for slot in local.slots(None, 11)] == [(0, 1), (2, 5, 6)]
    assert [slot.cores for slot in local.slots(None, 20)] == [(0,), (1,), (2,), (5,), (6,)]
    assert [slot.cores for slot in local.slots(None, 400)] == [(0,), (1,), (2,), (5,), (6,)]
    assert [slot.cores for slot in local.slots(2)] == [(0, 1), (2, 5, 6)]
    assert [slot.cores for slot in local.slots(6)] == [(0,), (1,), (2,), (5,), (6,), (0,)]
    monkeypatch.setattr(local, "_devices", lambda: ("gpu", 2))
    assert len(local.slots(None, 400)) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in local.slots(3)] == ["3", "7", "3"]


def test_a_process_may_open_many_files():
    """More than it could before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low, opened = len(os.listdir("/dev/fd")) + 40, []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
        worker_process.allow_files()
        for _ in range(160):
            opened.append(os.dup(0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in opened:
            os.close(each)
