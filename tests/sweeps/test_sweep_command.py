"""The command of sweeps as a user has it: mistakes, and a sweep that is killed again and again."""

import json
import os
import shlex
import signal
import subprocess
import time

import commands
import numpy as np
import pytest
import tiny_sweep
from sweep_processes import workers

from lora_jax.records import run_record
from lora_jax.records.metrics_log import read_metrics


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Most of the time would be compilation, of the same few programs again and again."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled"))}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return {**os.environ, **cache, **commands.with_devices(1)}


def run(*arguments, **environment):
    """The command: its exit code, and what it prints."""
    done = commands.run("experiments.sweep", *arguments, **environment)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Flags of eight trials of four steps on eight sentences."""
    return [
        *tiny_sweep.flags(tmp_path_factory.mktemp("tiny"), epochs=4),
        "--sweep=variant=lora,dora",
        "--sweep=config.optimizer.learning_rate=1e-3,3e-3",
        "--sweep=config.seed=0:2",
    ]


def test_a_shard_without_a_job_says_so(tmp_path):
    arguments = ("--config=configs/quickstart.py:size=smoke", "--sweep=config.seed=0:2")
    code, out, said = run(*arguments, "--shard=2/3", f"--workdir={tmp_path / 'sweep'}")
    assert (code, out) == (0, "shard 2/3 has no job: 2 jobs of 2 trials in all; see --per_job\n"), (
        said
    )
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_a_sweep_that_is_killed_three_times_is_the_same_sweep(tiny, environment, tmp_path):
    """Also: a printed command trains its job's trials, and `experiments.train` knows them."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    tiny = (*tiny, "--execution=each")  # whose bits do not depend on who shares a program
    tiny = (*tiny, "--noaudit")
    code, printed, said = run(*tiny, f"--workdir={whole}", "--launcher=print")
    assert code == 0, said
    first, second = printed.splitlines()  # one for each program
    done = subprocess.run(first, shell=True, cwd="/", env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    words = shlex.split(second)
    words = words[words.index("experiments.sweeps.worker") :]
    assert commands.run(*words, **environment).returncode == 0
    straight = {path.parent.name: path.parent for path in whole.glob("trials/*/record.json")}
    assert len(straight) == 8

    arguments = (*tiny, f"--workdir={killed}", "--processes=1")
    rng = np.random.default_rng()
    for reached, most in ((1, 4), (5, 0.3)):  # the fifth is of the other, last job
        terminate(arguments, environment, killed)
        kill(arguments, environment, killed, reached, rng.uniform(0, most))
    code, out, said = run(*arguments, **environment)
    assert code == 0, said + out
    assert "8 trials: 8 completed" in out

    found = {path.parent.name: path.parent for path in killed.glob("trials/*/record.json")}
    assert found.keys() == straight.keys()
    listed = json.loads((killed / "trials.json").read_text())["trials"]
    assert [each["name"] for each in listed] == [
        f"variant={variant},learning_rate={rate},seed={seed}"
        for variant in ("lora", "dora")
        for rate in ("0.001", "0.003")
        for seed in range(2)
    ]
    for each in listed:
        one, other = (run_record.read(folder[each["name"]]) for folder in (straight, found))
        assert what_counts(one) == what_counts(other)
        wanted = {"config_digest": each["digest"], "status": "completed", "steps": 4, "audit": None}
        assert wanted.items() <= what_counts(one).items()
        logs = [read_metrics(f[each["name"]] / "metrics.jsonl") for f in (straight, found)]
        assert logs[0] == logs[1]
        assert [row["step"] for row in logs[1] if "loss" in row] == [1, 2, 3, 4]
    assert (straight[listed[3]["name"]] / "adapter.safetensors").read_bytes() == (
        found[listed[3]["name"]] / "adapter.safetensors"
    ).read_bytes()

    before = {path: path.stat().st_mtime_ns for path in killed.rglob("trials/**/*")}
    own = f"--workdir={found[listed[7]['name']]}"
    one = commands.with_devices(1)
    done = commands.run("experiments.train", *listed[7]["arguments"], own, **one)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in killed.rglob("trials/**/*")} == before


def what_counts(record):
    names = ("config_digest", "status", "steps", "audit", "metrics_last", "metrics_best")
    return {name: getattr(record, name) for name in names}


def kill(arguments, environment, workdir, reached, seconds):
    """Start a sweep, and kill it some seconds after so many records are there."""
    started = commands.Started("experiments.sweep", *arguments, **environment)
    while started.running and len(list(workdir.glob("trials/*/config.json"))) < reached:
        pass
    time.sleep(seconds)
    assert started.running, f"it ended before it was killed: {started.end()}"
    started.kill()
    until = time.monotonic() + 30
    while workers(workdir):
        assert time.monotonic() < until, "a worker outlived the sweep"
        time.sleep(0.1)


def terminate(arguments, environment, workdir):
    """Start a sweep, and ask it to end once a worker trains: it lets that save its step."""
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("outcomes/*.json")}
    started = commands.Started("experiments.sweep", *arguments, **environment)
    while started.running and before == {
        path: path.stat().st_mtime_ns for path in workdir.glob("outcomes/*.json")
    }:
        pass
    started.send(signal.SIGTERM)
    done = started.end()
    assert done.returncode == 75, done.stderr
    assert done.stderr.startswith("devices: 1 process on the CPU, with ")
    assert "stopped; the same command goes on from here" in done.stdout
    assert not workers(workdir)
