"""The command of a search as a user has it: mistakes, and whole searches, one of them killed."""

import json
import os
import subprocess
import sys
import time

import commands
import pytest
import small_model
from commands import ROOT

from lora_jax.records import run_record

RATE = "--sweep=config.optimizer.learning_rate=log:1e-4:1e-1"


def run(*arguments):
    done = commands.run("experiments.sweep", *arguments)
    return done.returncode, done.stdout, done.stderr


def test_flags_that_do_not_go_with_a_search(tmp_path):
    config = ("--config=configs/quickstart.py:size=smoke", f"--workdir={tmp_path / 'search'}", RATE)
    for flags, said in (
        (["--budget=9"], "--budget goes with --search, such as --search=tpe"),
        (
            ["--halving_factor=2"],
            "--halving_factor would be ignored: it goes with --search=halving",
        ),
        (["--search=random"], "--search=random needs --trials=N, --budget=STEPS, or both"),
        (["--search=random", "--trials=3", "--shard=0/2"], "--shard does not go with --search"),
        (
            ["--search=halving", "--trials=3", "--processes=2"],
            "--processes does not go with --sear",
        ),
        (
            ["--search=halving", "--trials=3", "--retry"],
            "--retry does not go with --search=halving, where a diverged trial has lost",
        ),
        (["--search=tpe", "--trials=3", "--launcher=print"], "--launcher=print: --search runs on"),
    ):
        code, out, error = run(*config, *flags)
        assert (code, out) == (1, "")
        assert error.startswith(f"error: {said}")
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "search").exists()


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Of 8 steps, with 40 sentences held out."""
    return [*small_model.flags(tmp_path_factory.mktemp("small")), RATE, "--noaudit"]


def records(folder):
    found = {path.parent.name: run_record.read(path.parent) for path in folder.rglob("record.json")}
    return {name: (r.status, r.note, r.steps, r.metrics_last, r.rungs) for name, r in found.items()}


def test_the_process_that_searches_leaves_accelerators_to_its_workers(flags, tmp_path):
    """It traces shapes before anything else, and would hold a device that workers need."""
    other = tmp_path / "other.py"
    other.write_text(
        "import runpy, jax\n"
        "jax.config.update('jax_platforms', 'accelerator')\n"
        "runpy.run_module('experiments.sweep', run_name='__main__', alter_sys=True)\n"
    )
    more = ["--search=random", "--budget=7", f"--workdir={tmp_path / 'search'}"]
    done = commands.run(other, *flags, *more)
    assert done.stderr == "error: --budget=7 is too small for trials of 8 steps\n"


@pytest.mark.slow
def test_a_halving_that_is_killed_is_the_same_halving(flags, tmp_path):
    flags = [*flags, "--search=halving", "--trials=6", "--halving_factor=2", "--execution=each"]
    code, said, error = run(*flags, f"--workdir={tmp_path / 'whole'}")
    assert code == 0, error
    assert error.startswith("devices: 1 process on the CPU, with ")
    whole = records(tmp_path / "whole")
    assert sorted(each[0] for each in whole.values()) == ["completed", *["stopped"] * 5]
    assert "best: learning_rate=" in said
    best = json.loads((tmp_path / "whole" / "search.json").read_text())["best"]
    assert whole[best["name"]][0] == "completed"
    code, said, error = run(*flags, f"--workdir={tmp_path / 'whole'}", "--dry_run")
    assert (code, "6 trials, 0 to train, in 0 jobs" in said) == (0, True), error

    killed = tmp_path / "killed"
    line = [sys.executable, "-m", "experiments.sweep", *flags, f"--workdir={killed}"]
    process = subprocess.Popen(line, cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL)
    while not list(killed.glob("trials/.programs/*/rungs.json")) and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    code, said, error = run(*flags, f"--workdir={killed}")
    assert code == 0, error
    assert records(killed) == whole
    assert json.loads((killed / "search.json").read_text())["best"] == best


@pytest.mark.slow
def test_tpe_trains_rounds_in_several_processes(flags, tmp_path):
    flags = [
        *flags,
        "--search=tpe",
        "--per_round=2",
        "--processes=2",
        f"--workdir={tmp_path / 's'}",
    ]
    code, said, error = run(*flags, "--trials=2")
    assert code == 0, error
    code, said, error = run(*flags, "--trials=4")
    assert code == 0, error
    rounds = json.loads((tmp_path / "s" / "search.json").read_text())["rounds"]
    assert [len(each) for each in rounds] == [2, 2]
    assert [each[0] for each in records(tmp_path / "s").values()] == ["completed"] * 4
    assert "(4 trials, 32 training steps in all)" in said
