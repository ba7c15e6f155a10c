"""A sweep's folder keeps its trials and their states, and refuses what it cannot believe."""

import io
import json
import os
import subprocess
import sys

import pytest
from commands import ROOT
from quickstart_sweep import SMOKE, made, sweep, trained, trained_one
from rich.console import Console

from experiments.sweeps import jobs, trials
from experiments.sweeps.folder import LockedError, SweepFolder, TrialState, locked
from experiments.sweeps.view import View, summary
from lora_jax.records import run_record
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


@pytest.mark.parametrize("text", ["{", '{"status": 3}'])
def test_a_damaged_outcome_says_what_to_do(tmp_path, text):
    (tmp_path / "outcomes").mkdir()
    (tmp_path / "outcomes" / "a.json").write_text(text)
    with pytest.raises(ValueError, match="delete this file, and the trial's folder says how it e"):
        SweepFolder(tmp_path).attempt("a")


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
    with pytest.raises(ValueError, match=r"trials.json is no list of trials"):
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


@pytest.mark.parametrize(
    "content",
    [
        *("[" * 9999, "[]", "{}", "NaN", "\x00", '{"status": 3}'),
        *(f'{{"status": "killed", {more}}}' for more in ('"process": "1"', '"what": 1')),
        '{"status": "killed", "process": true}',
    ],
)
def test_an_outcome_of_anything_else_is_one_line(tmp_path, content):
    folder, found = sweep(tmp_path, "config.seed=0:2")
    folder.end("seed=0", "killed")
    assert folder.state(found[0]).status == "killed"
    (folder.path / "outcomes" / "seed=0.json").write_text(content)
    with pytest.raises(ValueError, match=r"outcomes/seed=0\.json") as error:
        folder.state(found[0])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("name", each) for each in ("../seed=0", "/tmp/x", "a/b", "..", ".", "", 3, None)),
        *(("digest", each) for each in (None, 3, ["a"])),
        *(("arguments", each) for each in (None, [], [3], "--config=x", {})),
        *(("overrides", each) for each in (None, [], "x")),
    ],
)
def test_a_list_of_anything_else_is_one_line(tmp_path, key, value):
    """A trial's name is that of its folder, among the others."""
    folder, _ = sweep(tmp_path, "config.seed=0:2")
    path = folder.path / "trials.json"
    assert len(folder.require(())) == 2
    listed = json.loads(path.read_text())
    del listed["seal"]  # as in a list of an earlier version
    listed["trials"][1][key] = value
    for wrong in (listed, {**listed, "trials": {}}, {**listed, "trials": [3]}, [listed]):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"trials\.json is no list of trials: ") as error:
            folder.require(())
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
