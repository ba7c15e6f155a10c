"""A process may open the files of all trials of its job, or says that they are too many."""

import os
import resource

import pytest
from launcher_contract import stub
from quickstart_sweep import sweep

from experiments.sweeps import worker_process
from experiments.sweeps.launchers import local

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_the_limit_is_raised_as_far_as_trials_need():
    assert worker_process.file_limit(10, 4096, 4096) == 4096
    assert worker_process.file_limit(300, 1024, 2**40) == 4 * 300 + 1024
    assert worker_process.file_limit(300, 1024, 2000) == 2000
    assert worker_process.file_limit(240, 1024, 1024) == 1024
    said = "^a job of 241 trials opens 1028 files or more, and this process may open 1024 .*: lower"
    with pytest.raises(ValueError, match=f"{said} --per_job "):
        worker_process.file_limit(241, 1024, 1024)


def test_a_process_opens_the_files_of_its_trials(tmp_path):
    """Of 40 trials, where it could not before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = len(os.listdir("/dev/fd")) + 40
    opened = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
        with pytest.raises(OSError, match="Too many open files"):
            for _ in range(160):
                opened.append(os.dup(0))
        os.close(opened.pop())
        worker_process.allow_files(40)
        for _ in range(160):
            opened.append(os.dup(0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in opened:
            os.close(each)


def test_a_job_that_cannot_open_its_files_is_refused_before_it_begins(tmp_path, monkeypatch):
    """Else each process would end, with one trial noted as killed, and another one begin."""
    folder, found = sweep(tmp_path, "config.seed=0:3")
    monkeypatch.setattr(worker_process, "own_file_limits", lambda: (70, 70))
    with pytest.raises(ValueError, match=r"^a job of 3 trials opens 76 files"):
        local.launch([found], folder, [local.Slot({}, ())], lambda: None, stub)
    assert {folder.state(trial).status for trial in found} == {"waiting"}
