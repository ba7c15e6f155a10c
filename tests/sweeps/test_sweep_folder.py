"""A sweep's folder keeps its trials and their states, and jobs have every trial of it once."""

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys

import pytest
from commands import ROOT
from quickstart_sweep import SMOKE, made, sweep, trained, trained_one
from rich.console import Console

from experiments.runs.run_options import RunOptions
from experiments.sweeps import jobs, trials
from experiments.sweeps.folder import LockedError, SweepFolder, TrialState, lock, locked
from experiments.sweeps.view import View, summary
from lora_jax.records import run_record
from lora_jax.records.metrics_log import Metrics
from lora_jax.training.loop_settings import Loop

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_locks_die_with_their_processes(tmp_path):
    folder = SweepFolder(tmp_path)
    code = (
        "import fcntl, sys\n"
        f"file = open({str(tmp_path / 'locks' / 'sweep')!r}, 'a')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    (tmp_path / "locks").mkdir()
    line = [sys.executable, "-c", code]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        for part in (None, (0, 2)):
            with pytest.raises(LockedError, match=f"is working on {tmp_path}"), folder.held(part):
                pass
        assert locked(tmp_path / "locks" / "sweep")
        other.kill()
    assert not locked(tmp_path / "locks" / "sweep")
    mine = f"process {os.getpid()} on .* is working on"
    with folder.held(None), pytest.raises(LockedError, match=mine):
        folder.held((0, 2)).__enter__()
    with folder.held((0, 2)), folder.held((1, 2)):
        assert not locked(tmp_path / "locks" / "sweep")  # not by one alone
        for part in (None, (0, 2)):
            with pytest.raises(LockedError):
                folder.held(part).__enter__()


def test_another_sweep_adds_its_trials(tmp_path):
    folder, found = sweep(tmp_path, "config.seed=0:2")
    jobs.work(folder, ["seed=0"], train=trained)
    more = folder.known(made("variant=lora,vera", "config.seed=0:2"))
    assert [trial.name for trial in more] == [
        "seed=0",  # the variant is lora without being told
        "seed=1",
        "variant=vera,seed=0",
        "variant=vera,seed=1",
    ]
    folder.write_list(more)
    listed = json.loads((folder.path / "trials.json").read_text())["trials"]
    assert [each["name"] for each in listed] == [trial.name for trial in more]
    assert listed[0]["overrides"] == {"variant": "lora", "config.seed": "0"}
    assert folder.trial("seed=0").digest == found[0].digest == listed[0]["digest"]
    before = (folder.path / "trials.json").stat().st_mtime_ns
    folder.write_list(more)
    assert (folder.path / "trials.json").stat().st_mtime_ns == before


def test_a_folder_of_other_settings_is_refused(tmp_path):
    folder, _ = sweep(tmp_path, "config.seed=0:2")
    run_record.claim(folder.run("seed=0"), made("config.seed=0")[0].config.plain)
    other = made("config.seed=0:2", arguments=[*SMOKE, "--config.train.max_steps=3"])
    said = "config.train.max_steps is 0 there and 3 here"
    with pytest.raises(ValueError, match=said):
        folder.known(other)
    assert [trial.name for trial in folder.known(other[1:])] == ["seed=1"]  # which nobody began
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        SweepFolder(tmp_path / "file").require_sweep_or_empty()
    with pytest.raises(ValueError, match=r"holds file but no trials.json"):
        SweepFolder(tmp_path).require_sweep_or_empty()
    folder.require_sweep_or_empty()
    (folder.path / "trials.json").write_text("[")
    with pytest.raises(ValueError, match=r"trials.json is not a list of trials"):
        folder.known(other)


def test_a_config_that_has_changed_since_is_not_trained(tmp_path, capsys):
    file = tmp_path / "own.py"
    text = (ROOT / "configs" / "quickstart.py").read_text()
    file.write_text(text)
    folder = SweepFolder(tmp_path / "sweep")
    folder.write_list(trials.make([f"--config={file}"], [{"config.seed": "0"}]))
    file.write_text(text.replace('"seed": 0', '"seed": 0, "more": 1'))
    assert not jobs.work(folder, ["seed=0"], train=trained)
    assert "makes another config than when the sweep was started" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"has no trial 'seed=1'; nearest: 'seed=0'"):
        folder.require(["seed=1"])


@pytest.mark.parametrize(("number", "status"), [(0, "completed"), (2, "diverged")])
def test_a_trial_whose_record_is_gone_has_not_ended(tmp_path, number, status):
    """The sweep says so in a line, and trains it again."""
    folder, [trial] = sweep(tmp_path, f"config.seed={number}")
    jobs.work(folder, [trial.name], train=trained)
    assert folder.state(trial).status == status
    (folder.run(trial.name) / "record.json").unlink()
    told = io.StringIO()
    view = View([trial], [Loop(20)], folder, Console(file=told))
    said = f"seed={number}: lost, it was {status}, and its record.json is gone"
    assert told.getvalue().splitlines() == [said]
    assert summary(view.rows, folder)[:2] == ["1 trials: 1 lost", said]
    assert not all(row.state.ended for row in view.rows)
    jobs.work(folder, [trial.name], train=trained)
    assert folder.state(trial).status == status


def test_a_trial_whose_record_is_damaged_is_lost_until_that_is_deleted(tmp_path):
    folder, found = sweep(tmp_path, "config.seed=0:2")
    record = folder.run("seed=0") / "record.json"
    jobs.work(folder, ["seed=0"], train=trained)
    record.write_text(record.read_text().replace('"seed": 0', '"seed": 7'))

    def refuses(configs, folders, names, how):
        return [ValueError("record.json cannot be read")]

    for _ in range(2):
        state = folder.state(found[0])
        assert state.status == "lost"
        assert state.note.startswith(f"{record}: ")
        assert state.note.endswith("; delete this file to train the trial again")
        assert not jobs.work(folder, ["seed=0"], train=refuses)
    record.unlink()
    assert jobs.work(folder, ["seed=0"], train=trained)
    folder.run("seed=1").mkdir(parents=True)
    trained_one(made("config.seed=3")[0].config, folder.run("seed=1"))
    said = f"{folder.run('seed=1')} holds a run of another configuration"
    assert folder.state(found[1]) == TrialState("failed", said)


@pytest.mark.parametrize("content", ["[" * 9999, "[]", "{}", "NaN", "\x00", '{"what": 1}'])
def test_a_file_of_anything_else_is_one_line(tmp_path, content):
    folder, found = sweep(tmp_path, "config.seed=0:2")
    folder.end("seed=0", "killed")
    assert folder.state(found[0]).status == "killed"
    (folder.path / "outcomes" / "seed=0.json").write_text(content)
    (folder.path / "trials.json").write_text(content)
    said = r"outcomes/seed=0\.json .*delete this file, and the trial's folder says how it ended"
    for read, wanted in (
        (lambda: folder.state(found[0]), said),
        (lambda: folder.require(()), r"trials\.json is not a list of trials: "),
    ):
        with pytest.raises(ValueError, match=wanted) as error:
            read()
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["trials.json", "outcomes/seed=0.json"])
def test_a_changed_number_or_letter_in_a_sweeps_files_is_seen(tmp_path, name):
    folder, found = sweep(tmp_path, "config.seed=0:2")
    folder.end("seed=0", "killed", "its process was ended by SIGKILL", 12)
    path = folder.path / name
    text = path.read_text()
    changes = {"trials.json": ("seed=1", "seed=3"), "outcomes/seed=0.json": ("12", "13")}
    path.write_text(text.replace(*changes[name], 1))
    assert path.read_text() != text
    with pytest.raises(ValueError, match=rf"{name}.*changed after it was written"):
        folder.state(found[0]) if name != "trials.json" else folder.require(())
    values = json.loads(text)
    del values["seal"]  # an earlier version
    path.write_text(json.dumps(values))
    assert folder.require(()) and folder.state(found[0]).process == 12


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
    line = jobs.command(folder, found[:1])
    assert line[1:] == [
        *("-m", "experiments.sweeps.worker", f"--workdir={folder.path.resolve()}"),
        f"--trial={found[0].name}",
    ]
    assert shlex.split(jobs.shell_command(folder, found[:1])) == ["cd", os.getcwd(), "&&", *line]


def printed(table):
    shown = io.StringIO()
    Console(file=shown, width=100).print(table)
    return shown.getvalue().splitlines()


def test_what_is_shown(tmp_path):
    folder, found = sweep(tmp_path, "config.seed=0:3")
    loops = [Loop(20, metric="accuracy")] * 3
    told = io.StringIO()
    view = View(found, loops, folder, Console(file=told, width=100))
    folder.begin("seed=0")
    with lock(folder.lock_file("seed=0")):
        with Metrics(folder.run("seed=0")) as log:
            log.write(5, {"loss": 0.75})
            view.update(now=True)
            log.write(10, {"loss": 0.5, "grad_norm": 1.0})
            log.write(10, {"accuracy": 0.625, "eval_loss": 0.6})
            view.update(now=True)
        lines = [line.split() for line in printed(view.table())]
        assert lines == [
            ["trial", "step", "loss", "metric"],
            ["seed=0", "10/20", "0.500", "accuracy", "0.6250"],
            ["1", "running,", "2", "waiting"],
        ]
    trained_one(found[0].config, folder.run("seed=0"))
    folder.end("seed=1", "failed", "ValueError: [so] it is")
    view.update(now=True)
    assert told.getvalue().splitlines() == [
        "seed=0: running",
        "seed=0: completed, accuracy 0.6250 (1 of 3)",
        "seed=1: failed, ValueError: [so] it is (2 of 3)",
    ]
    assert not all(row.state.ended for row in view.rows)
    assert summary(view.rows, folder) == [
        "3 trials: 1 completed, 1 failed, 1 waiting",
        "seed=1: failed, ValueError: [so] it is",
        f"records: {folder.path / 'trials'}",
        f"report: python -m experiments.report --results={folder.path} --size=smoke",
    ]
