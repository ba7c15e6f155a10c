"""Jobs have every trial once, and what ends one trial does not end the others."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys

import pytest
from quickstart_sweep import made, sweep, trained

from experiments.runs.run_options import RunOptions
from experiments.sweeps import jobs
from experiments.sweeps.folder import lock

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_shards_and_jobs_have_every_trial_once():
    found = made("config.seed=0:23")
    for size in (1, 3, 30):
        whole = jobs.make(found, size)
        assert [trial for job in whole for trial in job] == found
        for count in (1, 2, 5):
            parts = [jobs.shard(whole, (number, count)) for number in range(count)]
            assert sorted(job[0].name for part in parts for job in part) == sorted(
                job[0].name for job in whole
            )
            assert parts[0][0] == whole[0]
    for part in ((0, 2), (1, 2)):
        assert len(jobs.shard(jobs.make(found, 0), part)) == 1 - part[0]
    assert jobs.no_job(jobs.make(found, 0), (1, 2)) == (
        "shard 1/2 has no job: 1 job of 23 trials in all; see --per_job"
    )
    assert jobs.no_job(jobs.make(found[:2], 1), (2, 3)) == (
        "shard 2/3 has no job: 2 jobs of 2 trials in all"
    )
    assert jobs.parse_shard("") is None
    assert jobs.parse_shard("3/4") == (3, 4)
    for text in ("4/4", "1", "a/b", "-1/4", "0/0"):
        with pytest.raises(ValueError, match=f"--shard={text}: expected i/n with i from 0 to n-1"):
            jobs.parse_shard(text)


def test_every_worker_has_a_job_where_there_are_trials_enough():
    found = made("config.seed=0:7") + made("variant=dora", "config.seed=0:2")

    def sizes(*arguments):
        whole = jobs.make(found, *arguments)
        assert [trial for job in whole for trial in job] == found
        assert whole == jobs.make(found, *arguments)
        assert all(len({trial.config.variant.name for trial in job}) == 1 for job in whole)
        return [len(job) for job in whole]

    assert sizes() == sizes(None, 2) == [7, 2]
    assert sizes(None, 4) == [2, 2, 3, 2]
    assert sizes(None, 50) == [1] * 9
    assert sizes(0, 4) == [7, 2]
    assert sizes(3, 1) == sizes(3, 50) == [3, 3, 1, 2]
    with pytest.raises(ValueError, match="--per_job must be at least 0"):
        sizes(-1)


def test_what_ends_one_trial_others_do_not_notice(tmp_path, capsys):
    folder, found = sweep(tmp_path, "config.seed=0:4")
    assert not jobs.work(folder, [trial.name for trial in found], train=trained)
    assert "the disk" in capsys.readouterr().out  # for the log
    states = [folder.state(trial) for trial in found]
    assert [(each.status, each.note) for each in states] == [
        ("completed", ""),
        ("failed", "RuntimeError: the disk"),
        ("diverged", "not finite at step 3"),
        ("completed", ""),
    ]
    assert jobs.work(folder, [found[0].name, found[3].name], train=trained)
    names = sorted(path.parent.name for path in folder.path.rglob("record.json"))
    assert names == ["seed=0", "seed=2", "seed=3"]


def test_a_trial_that_diverged_is_trained_again_where_asked(tmp_path):
    folder, found = sweep(tmp_path, "config.seed=0,2")
    begun = []

    def noted(configs, folders, names, how):
        begun.append(how.retry)
        return trained(configs, folders, names, how)

    for retry in (False, False, True):
        jobs.work(folder, [trial.name for trial in found], RunOptions(retry=retry), train=noted)
    assert begun == [False, True]


def test_a_trial_that_another_process_works_on_is_left_to_it(tmp_path, monkeypatch, capsys):
    folder, found = sweep(tmp_path, "config.seed=0,3")
    monkeypatch.setattr(jobs, "GRACE", 0.0)
    folder.begin("seed=0")
    assert folder.state(found[0]).status == "interrupted"
    with lock(folder.lock_file("seed=0")):
        assert folder.state(found[0]).status == "running"
        assert not jobs.work(folder, ["seed=0", "seed=3"], train=trained)
    assert f"process {os.getpid()} on " in capsys.readouterr().out
    assert [folder.state(trial).status for trial in found] == ["interrupted", "completed"]


@pytest.mark.parametrize("why", ["locked", "unknown"])
def test_trials_that_are_halved_begin_all_together_or_not_at_all(tmp_path, why):
    folder, found = sweep(tmp_path, "config.seed=0:3")
    names, how = [trial.name for trial in found], RunOptions(halving=2)
    with contextlib.ExitStack() as stack:
        said = "has no trial 'seed=9'"
        if why == "locked":
            stack.enter_context(lock(folder.lock_file("seed=1")))
            said = f"process {os.getpid()} on .* is working on {folder.path}"
        names[1] = {"locked": "seed=1", "unknown": "seed=9"}[why]
        line = f"^a halving has all of its trials .*, and {names[1]} is missing: .*{said}"
        with pytest.raises(ValueError, match=line):
            jobs.work(folder, names, how, train=pytest.fail, wait=0)
    assert {folder.state(trial).status for trial in found} == {"waiting"}


@pytest.mark.parametrize("late", [1, 2])
def test_a_sigterm_after_training_ends_a_worker_before_its_next_program(tmp_path, late):
    folder, found = sweep(tmp_path, "variant=lora,dora")
    trained = []

    def train(configs, folders, names, how):
        trained.extend(names)
        if len(trained) == late:
            os.kill(os.getpid(), signal.SIGTERM)
        return [ValueError("no result")] * len(names)

    names = [trial.name for trial in found]
    with contextlib.ExitStack() as stack:
        if late < len(names):
            stack.enter_context(pytest.raises(SystemExit, match="75"))
        jobs.work(folder, names, train=train)
    assert trained == names[:late]


def test_printed_commands_are_whole(tmp_path):
    folder, found = sweep(tmp_path / "a folder; rm", "config.data.extra='a b;','$(c)'")
    first, _ = (jobs.shell_command(folder, job) for job in jobs.make(found, 1))
    shown = subprocess.run(
        f"function cd() {{ echo at $1; }}; {first.replace(sys.executable, 'printf %s__')}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.splitlines()[0] == f"at {os.getcwd()}"
    said = shown.splitlines()[1].split("__")
    assert said[:2] == ["-m", "experiments.worker"]
    assert said[2:4] == [f"--workdir={folder.path.resolve()}", f"--trial={found[0].name}"]
    assert shlex.split(first)[3:] == jobs.command(folder, found[:1])
