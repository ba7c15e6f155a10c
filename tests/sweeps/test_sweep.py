"""Sweeps without training: the folder, jobs, launchers, the check and what is shown."""

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import fake_records
import launcher_contract
import pytest
import small_model
from launcher_contract import stub
from rich.console import Console

from experiments.runs.how import How
from experiments.runs.interruption import TEMPORARY_FAILURE, Interrupted
from experiments.sweeps import jobs, preflight, process_error, time_estimate, trials
from experiments.sweeps.folder import LockedError, SweepFolder, TrialState, lock, locked
from experiments.sweeps.launchers import local, slurm
from experiments.sweeps.view import View, clock, summary
from lora_jax.records import run_record
from lora_jax.records.metrics_log import Metrics
from lora_jax.training.loop_settings import Loop

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
ROOT = Path(__file__).parents[2]
FILE = str(ROOT / "configs" / "quickstart.py")
SMOKE = [f"--config={FILE}:size=smoke"]


def made(*specs, arguments=SMOKE):
    return trials.make(arguments, trials.overrides_of(FILE, specs, arguments=arguments))


def sweep(tmp_path, *specs):
    folder = SweepFolder(tmp_path / "sweep")
    found = made(*specs)
    folder.write_list(found)
    return folder, found


def trained(configs, folders, names, how):
    """In place of training: what it leaves where seed 1 fails and seed 2 diverges."""
    return [_trained(config, folder) for config, folder in zip(configs, folders, strict=True)]


def _trained(config, folder):
    if config.seed == 1:
        return RuntimeError("the disk\nis full")
    status = "diverged" if config.seed == 2 else "completed"
    return fake_records.write(
        folder,
        "quickstart",
        "size=smoke",
        {"accuracy": 0.5},
        changes={"seed": config.seed},
        status=status,
        note="not finite at step 3" if status == "diverged" else "",
    )


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
        jobs.work(folder, [trial.name for trial in found], How(retry=retry), train=noted)
    assert begun == [False, True]


def test_a_trial_that_another_process_works_on_is_left_to_it(tmp_path, monkeypatch, capsys):
    folder, found = sweep(tmp_path, "config.seed=0,3")
    monkeypatch.setattr(jobs, "GRACE", 0.0)
    folder.begin("seed=0")
    assert folder.state(found[0]).status == "interrupted"
    with lock(folder.lock("seed=0")):
        assert folder.state(found[0]).status == "running"
        assert not jobs.work(folder, ["seed=0", "seed=3"], train=trained)
    assert f"process {os.getpid()} on " in capsys.readouterr().out
    assert [folder.state(trial).status for trial in found] == ["interrupted", "completed"]


@pytest.mark.parametrize("why", ["locked", "unknown"])
def test_trials_that_are_halved_begin_all_together_or_not_at_all(tmp_path, why):
    folder, found = sweep(tmp_path, "config.seed=0:3")
    names, how = [trial.name for trial in found], How(halving=2)
    with contextlib.ExitStack() as stack:
        said = "has no trial 'seed=9'"
        if why == "locked":
            stack.enter_context(lock(folder.lock("seed=1")))
            said = f"process {os.getpid()} on .* is working on {folder.path}"
        names[1] = {"locked": "seed=1", "unknown": "seed=9"}[why]
        line = f"^a halving has all of its trials .*, and {names[1]} is missing: .*{said}"
        with pytest.raises(ValueError, match=line):
            jobs.work(folder, names, how, train=pytest.fail, wait=0)
    assert {folder.state(trial).status for trial in found} == {"waiting"}


def test_trials_that_are_halved_get_no_process_without_the_one_that_failed(tmp_path):
    folder, found = launcher_contract.sweep(tmp_path, "config.seed=5,3,4")
    local.launch([found], folder, [local.Slot({}, ())], lambda: None, stub, whole=True)
    states = [folder.state(trial) for trial in found]
    assert [each.status for each in states] == ["killed", "waiting", "waiting"]
    assert states[0].note.startswith("its process ended with code 1; ImportError: no such thing")


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
        for part in (None, (0, 2)):
            with pytest.raises(LockedError):
                folder.held(part).__enter__()


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
    assert states["seed=5"].note.startswith("its process ended with code 1; ImportError: no such")
    assert [name for name, *_ in calls] == ["seed=0", "seed=2", "seed=3", "seed=4"]
    assert len({process for _, process, *_ in calls}) == 3


def test_a_worker_leaves_the_error_that_ends_it_for_the_note(tmp_path):
    folder, [trial] = SweepFolder(tmp_path), made("config.seed=0")  # it is in no list
    local.launch([[trial]], folder, [local.Slot({}, ())], lambda: None)
    said = f"its process ended with code 1; ValueError: {tmp_path / 'trials.json'} has no trial"
    assert folder.state(trial).note.startswith(said)


def test_the_note_on_a_process_that_left_no_error_names_its_log_alone(tmp_path):
    """Whatever the log says, and whatever an earlier process of the same name has left."""
    folder, [trial] = sweep(tmp_path, "config.seed=0")
    with pytest.raises(OSError), process_error.written(folder.error("seed=0")):
        raise OSError("of an earlier process")
    log = folder.log("seed=0")
    log.write_text("an Error that was dealt with\n")
    local.settle([trial], folder, os.getpid() + 1, -signal.SIGKILL)
    said = f"its process was ended by SIGKILL, as when memory runs out; {log}"
    assert folder.state(trial).note == said


def test_trials_that_died_together_say_that_they_did(tmp_path):
    folder, found = sweep(tmp_path, "config.seed=0:4")
    for trial in found[:3]:
        folder.end(trial.name, "running", process=7)
    folder.end("seed=0", "completed", process=7)
    assert local.settle(found, folder, 7, -signal.SIGKILL) == found[3:]
    for trial in found[1:3]:
        said = folder.state(trial).note
        assert said.startswith("its process, one with another trial, was ended by SIGKILL, as when")


def test_a_worker_that_is_asked_to_end_leaves_its_trial_to_be_gone_on_with(tmp_path):
    folder, found = sweep(tmp_path, "config.seed=0:2")

    def train(*_):
        raise Interrupted

    with pytest.raises(SystemExit, match="75"):
        jobs.work(folder, [trial.name for trial in found], train=train)
    assert [folder.state(trial).status for trial in found] == ["interrupted"] * 2
    assert local.settle(found, folder, os.getpid(), TEMPORARY_FAILURE) == []
    for trial in found:
        state = folder.state(trial)
        said = "its process, one with another trial, was asked to end by SIGTERM, and saved where"
        assert state.status == "killed" and state.note.startswith(said)


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


def test_what_each_process_gets(tmp_path):
    machine = [local.Slot({"CUDA_VISIBLE_DEVICES": str(n)}, (n, n + 2)) for n in range(2)]
    _, _, calls = launched(tmp_path, ["config.seed=3,4,6,7"], machine)
    assert sorted(name for name, *_ in calls) == ["seed=3", "seed=4", "seed=6", "seed=7"]
    assert {(cores, device) for *_, cores, device in calls} == {("0,2", "0"), ("1,3", "1")}


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
    monkeypatch.setattr(local, "_cores", lambda: [0, 1, 2, 5, 6])
    assert local.slots(None) == [local.Slot({}, (0, 1, 2, 5, 6))]
    assert [slot.cores for slot in local.slots(None, 11)] == [(0, 1), (2, 5, 6)]
    assert [slot.cores for slot in local.slots(None, 20)] == [(0,), (1,), (2,), (5,), (6,)]
    assert [slot.cores for slot in local.slots(None, 400)] == [(0,), (1,), (2,), (5,), (6,)]
    assert [slot.cores for slot in local.slots(2)] == [(0, 1), (2, 5, 6)]
    assert [slot.cores for slot in local.slots(6)] == [(0,), (1,), (2,), (5,), (6,), (0,)]
    with pytest.raises(ValueError, match="--processes must be positive, got 0"):
        local.slots(0)
    monkeypatch.setattr(local, "_devices", lambda: ("gpu", 2))
    assert len(local.slots(None, 400)) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in local.slots(3)] == ["3", "7", "3"]


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


def test_slurm_runs_commands(tmp_path, monkeypatch):
    """By submitit's executor of local processes, which takes the same options and ignores them."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(ROOT)
    line = [sys.executable, "-c", f"open({str(tmp_path / 'trace')!r}, 'w').write('here')"]
    options = {"slurm_partition": "gpu", "timeout_min": 5, "gpus_per_node": None}
    (job,) = slurm.submit([line], tmp_path / "slurm", options, "local")
    slurm.watch([job], lambda: None)
    job.result()
    assert (tmp_path / "trace").read_text() == "here"
    assert slurm.Command(("false",)).checkpoint().function == slurm.Command(("false",))
    with pytest.raises(ValueError, match=r"^--launcher=slurm: .*no_such_option"):
        slurm.submit([line], tmp_path / "slurm", {"no_such_option": 1}, "local")


def test_a_job_of_slurm_fails_where_its_command_does():
    slurm.Command((sys.executable, "-c", ""))()
    with pytest.raises(RuntimeError, match=r"not all trials .* ended with code 3"):
        slurm.Command((sys.executable, "-c", "raise SystemExit(3)"))()


@pytest.mark.parametrize("cluster", [None, "slurm"])
def test_without_slurm_there_is_no_silent_substitute(tmp_path, monkeypatch, cluster):
    monkeypatch.setitem(sys.modules, "submitit", object())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"no Slurm here .* --slurm_cluster=local runs") as caught:
        slurm.submit([["true"]], tmp_path / "slurm", {}, cluster)
    assert len(str(caught.value).splitlines()) == 1
    slurm.require("local")
    for name in ("sbatch", "srun"):
        with pytest.raises(ValueError, match="no Slurm here"):
            slurm.require(cluster)
        (tmp_path / name).write_text("#!/bin/sh")
        (tmp_path / name).chmod(0o755)
    slurm.require(cluster)


def test_slurm_without_submitit_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r'needs submitit: pip install "lora-jax\[slurm\]"'):
        slurm.submit([["true"]], tmp_path, {})


def test_all_that_is_wrong_is_said_before_anything_starts():
    def said(*specs, arguments=SMOKE):
        with pytest.raises(ValueError, match=": ") as caught:
            preflight.check_trials(made(*specs, arguments=arguments))
        return [line.strip() for line in str(caught.value).splitlines()]

    pissa = [*SMOKE, "--config.variant.initialization=pissa"]
    first, second = said("variant=lora,lorra", "config.variant.rank=8,999", arguments=pissa)
    assert first.startswith(
        "variant=lora,rank=999: 'layers/attention/key/kernel': initialization 'pissa' takes rank"
    )
    assert second.startswith(
        "variant=lorra,rank=8; variant=lorra,rank=999: unknown variant 'lorra'"
    )
    (only,) = said("config.data.source=demmo", "config.seed=0:3")
    assert only == "every trial: unknown data.source 'demmo'; nearest: 'demo'"
    (only,) = said("config.targets='quary/kernel'")
    assert "matches no weight; nearest: 'layers/attention/query/kernel'" in only
    (only,) = said("config.optimizer.warmup_steps=8,2")
    assert "warmup_steps=8: config.optimizer.warmup_steps 8 leaves nothing of 8 steps" in only
    found = made("config.train.max_steps=0,3")
    loops = preflight.check_trials(found)
    assert [(loop.steps, loop.metric) for loop in loops] == [(8, "accuracy"), (3, "accuracy")]


def test_a_model_without_its_weights_is_found_before_anything_starts(tmp_path):
    folder = small_model.write(tmp_path / "bert")
    arguments = [*SMOKE, f"--config.model.name={folder}"]

    def said():
        with pytest.raises(ValueError, match=r"^every trial: ") as caught:
            preflight.check_trials(made("config.seed=0:2", arguments=arguments))
        return str(caught.value)

    assert len(preflight.check_trials(made("config.seed=0:2", arguments=arguments))) == 2
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    assert "has shape (16, 32), config.json asks for (16, 48)" in said()
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "the weights have no tensor 'bert.encoder.layer.2." in said()
    (folder / "config.json").write_text(json.dumps(config))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:5000])
    assert "is corrupt or truncated" in said()
    (folder / "model.safetensors").unlink()
    assert f"{folder}: neither model.safetensors nor" in said()


def test_what_is_shown(tmp_path):
    folder, found = sweep(tmp_path, "config.seed=0:3")
    loops = [Loop(20, metric="accuracy")] * 3
    told = io.StringIO()
    view = View(found, loops, folder, Console(file=told, width=100))
    folder.begin("seed=0")
    with lock(folder.lock("seed=0")):
        with Metrics(folder.run("seed=0")) as log:
            log.write(5, {"loss": 0.75})
            view.update(now=True)
            log.write(10, {"loss": 0.5, "grad_norm": 1.0})
            log.write(10, {"accuracy": 0.625, "eval_loss": 0.6})
            view.update(now=True)
        row = view.rows[0]
        assert (row.step, row.loss, row.score) == (10, 0.5, 0.625)
        assert row.seconds_left is not None
        shown = io.StringIO()
        Console(file=shown, width=100).print(view.table())
        lines = [line.split() for line in shown.getvalue().splitlines()]
        assert lines[0] == ["trial", "status", "step", "loss", "metric", "time", "left"]
        assert lines[1][:6] == ["seed=0", "running", "10/20", "0.500", "accuracy", "0.6250"]
        assert lines[2] == ["seed=1", "waiting", "0/20"]
        assert lines[4] == ["1", "running,", "2", "waiting"]
        short = io.StringIO()
        Console(file=short, width=100).print(view.table(height=7))
        assert "2 not shown" in short.getvalue()
        assert "seed=0" in short.getvalue()
    _trained(found[0].config, folder.run("seed=0"))
    folder.end("seed=1", "failed", "ValueError: [so] it is")
    view.update(now=True)
    assert told.getvalue().splitlines() == [
        "seed=0: running",
        "seed=0: completed, accuracy 0.6250 (1 of 3)",
        "seed=1: failed, ValueError: [so] it is (2 of 3)",
    ]
    assert not view.ended()
    assert summary(view.rows, folder) == [
        "3 trials: 1 completed, 1 failed, 1 waiting",
        "seed=1: failed, ValueError: [so] it is",
        f"records: {folder.path / 'trials'}",
    ]
    assert [clock(each) for each in (41.6, 200, 18600)] == ["42 s", "3 min 20 s", "5 h 10 min"]


def test_a_narrow_terminal_cuts_names_alone(tmp_path):
    folder, found = sweep(tmp_path, "variant=lora,dora", "config.optimizer.learning_rate=1e-3,3e-3")
    view = View(found, [Loop(1200, metric="accuracy")] * 4, folder, Console(file=io.StringIO()))
    for row in view.rows:
        row.state = TrialState("completed")
        row.step, row.loss, row.score = 1200, 0.125, 0.59375
    shown = io.StringIO()
    Console(file=shown, width=80).print(view.table())
    _, *lines, caption = shown.getvalue().splitlines()
    assert (len(lines), caption.split()) == (4, ["4", "completed"])
    for line in lines:
        name, *rest = line.split()
        assert name.startswith("variant=")
        assert rest == ["completed", "1200/1200", "0.125", "accuracy", "0.5938"]


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
    assert not view.ended()
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
    _trained(made("config.seed=3")[0].config, folder.run("seed=1"))
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


def test_what_calls_cost():
    cost = time_estimate.Cost(compile=3.0, call=2.0, longest=16)
    assert cost.called({8: 2, 16: 4}) == 2 * 1 + 4 * 2
    assert cost.compiled({8: 2, 16: 4}) == 2 * 3
    assert time_estimate.Estimate(program=7.0, trial=2.0).of(5) == 7 + 10


def test_an_estimate_has_all_that_a_trial_does(tmp_path, monkeypatch):
    """The shared part by itself, and as many calls of the model as a run makes."""
    names = ("data.train", "data.validation", "data.max_length", "train.batch_size")
    settings = zip(names, (64, 40, 16, 8), strict=True)
    arguments = [*SMOKE, f"--config.model.name={small_model.write(tmp_path / 'bert')}"]
    arguments += [f"--config.{name}={value}" for name, value in settings]
    config = made("config.data.buckets=1", arguments=arguments)[0].config
    clock = [0.0]

    def slow(name, seconds):
        function = getattr(time_estimate, name)

        def late(*given, **options):
            clock[0] += seconds
            experiment = function(*given, **options)
            if name == "build":
                experiment.texts.task.unlabelled["more"] = experiment.texts.task.validation
                experiment.texts.encoded["more"] = experiment.texts.encoded["validation"]
            return experiment

        monkeypatch.setattr(time_estimate, name, late)

    slow("load", 1e6)
    slow("build", 1e3)
    monkeypatch.setattr(time_estimate, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(time_estimate, "_cost", lambda *_: time_estimate.Cost(1e4, 1.0, 16))
    found = time_estimate.measure(config)
    assert found.program == 1e6 + 2 * 1e4
    # 8 steps, the evaluation after the last, and the predictions of `more`: 5 batches each
    assert found.trial == 1e3 + 8 + 5 + 5


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
