"""Sweeps on a real Ray cluster of this machine: processes and the command itself are killed."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import commands
import launcher_contract
import pytest
import tiny_sweep
from sweep_processes import parent, workers

from experiments.sweeps.launchers import local, ray as ray_launcher
from lora_jax.records import run_record
from lora_jax.records.metrics_log import read_metrics

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Ray's
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
START = ["start", "--head", "--block", "--num-cpus=2", "--object-store-memory=100000000"]
START += ["--include-dashboard=false", "--disable-usage-stats"]
START += ["--min-worker-port=0", "--max-worker-port=0"]  # any that are free
SPECS = ["--execution=each", "--noaudit", "--per_job=1"]
EPOCHS = 25


@pytest.fixture(scope="module", autouse=True)
def settings_of_ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else it makes a token in the home folder
        patch.setenv("RAY_worker_niceness", "0")  # else the others of a full machine go first
        yield


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two CPUs that outlives its drivers."""
    with socket.socket() as free, socket.socket() as other:
        free.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, client = free.getsockname()[1], other.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # sockets have short paths
        line = [sys.executable, "-m", "ray.scripts.scripts", *START]
        line += [f"--port={port}", f"--ray-client-server-port={client}"]
        line += ["--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
        head = subprocess.Popen(line, stdout=subprocess.DEVNULL, start_new_session=True)
        signal.signal(signal.SIGINT, before)
        try:
            address, until = f"127.0.0.1:{port}", time.monotonic() + 120
            while True:
                assert head.poll() is None and time.monotonic() < until, "Ray does not start"
                try:
                    ray_launcher._reach(address)
                    break
                except ValueError:
                    time.sleep(0.2)
            yield address
        finally:
            head.terminate()  # it ends all processes of the cluster
            try:
                head.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)
                head.wait()


@pytest.fixture
def ray(cluster, monkeypatch):
    monkeypatch.chdir(commands.ROOT)
    with ray_launcher.connected(cluster) as connected:
        yield connected


def launch(todo, folder, ray, retries=3, command=launcher_contract.stub, watch=lambda: None):
    demand = {"CPU": 1}
    assert ray_launcher.shortage(demand, ray_launcher.machines(ray)) == ""
    ray_launcher.launch(todo, folder, ray, demand, retries, watch, command)


def test_tasks_train_each_trial_once(tmp_path, ray):
    launcher_contract.check(
        tmp_path, lambda todo, folder, command: launch(todo, folder, ray, command=command)
    )


def test_a_job_whose_process_dies_begins_again_so_often(tmp_path, ray, capsys):
    """Then its other trials get a process of their own."""
    folder, found = launcher_contract.sweep(tmp_path, "config.seed=0,1,3")
    launch([found], folder, ray, retries=2)
    states = [folder.state(trial) for trial in found]
    assert [each.status for each in states] == ["completed", "killed", "completed"]
    assert states[1].note.startswith("its process was ended by SIGKILL")
    assert ", the last of 3 times; " in states[1].note
    assert launcher_contract.calls(folder) == ["seed=0"] * 3 + ["seed=3"]
    assert capsys.readouterr().out.count("so its job begins again") == 2


def test_a_sweep_that_is_asked_to_end_asks_its_processes(tmp_path, ray):
    """They have the time to save, and are gone when the sweep has ended."""
    folder, found = launcher_contract.sweep(tmp_path, "config.seed=9")
    done = tmp_path / "saved"

    def command(folder, job):
        code = (
            "import pathlib, signal, sys, time\n"
            "def save(*_):\n"
            f"    time.sleep(0.5); pathlib.Path({str(done)!r}).touch(); sys.exit(75)\n"
            "signal.signal(signal.SIGTERM, save)\n"
            f"pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
            "time.sleep(600)\n"
        )
        return [sys.executable, "-c", code]

    def watch():
        if (tmp_path / "begun").exists():
            raise local.Terminated

    with pytest.raises(local.Terminated):
        launch([found], folder, ray, command=command, watch=watch)
    assert done.exists()


def test_what_no_machine_has_is_named(ray):
    machines = ray_launcher.machines(ray)
    for demand in ({"CPU": 0, "GPU": 1}, {"CPU": 3}):
        assert ray_launcher.shortage(demand, machines).startswith("--ray: no machine of the Ray ")


@pytest.mark.minutes
def test_a_sweep_whose_processes_and_command_are_killed_is_the_same_sweep(tmp_path, cluster):
    environment = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    environment |= commands.with_devices(1)
    flags = [*tiny_sweep.flags(tmp_path, EPOCHS), *SPECS]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    line = ["experiments.sweep", *flags, "--sweep=config.seed=0", f"--workdir={straight}"]
    done = commands.run(*line, **environment)
    assert done.returncode == 0, done.stderr

    line = ["experiments.sweep", *flags, "--sweep=config.seed=0:2", f"--workdir={killed}"]
    line += ["--launcher=ray"]
    line += [f"--ray_address={cluster}", "--ray=cpus=2"]  # one job at a time
    started = commands.Started(*line, **environment)
    worker = when_steps(started, killed / "trials" / "seed=0", 3)
    os.kill(parent(worker), signal.SIGKILL)  # Ray's process, which had started it
    when_steps(started, killed / "trials" / "seed=0", 10, other_than=worker)
    assert "seed=0: its Ray task ended (WorkerCrashedError: " in started.said()
    assert ", so its job begins again" in started.said()
    started.kill()
    until = time.monotonic() + 60
    while workers(killed):
        assert time.monotonic() < until, "a worker outlived the command"
        time.sleep(0.1)

    done = commands.run(*line, **environment)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "2 trials: 2 completed" in done.stdout
    one, other = (read(folder / "trials" / "seed=0") for folder in (straight, killed))
    assert one.metrics_last == other.metrics_last
    assert one.steps == other.steps == EPOCHS
    logs = [read_metrics(folder / "trials/seed=0/metrics.jsonl") for folder in (straight, killed)]
    assert logs[0] == logs[1]
    log = read_metrics(killed / "trials/seed=1/metrics.jsonl")
    assert [row["step"] for row in log if "loss" in row] == list(range(1, EPOCHS + 1))


def read(folder):
    record = run_record.read(folder)
    assert record is not None
    assert record.status == "completed"
    return record


def when_steps(started, folder, steps, other_than=0):
    """The process that trains, when it has logged so many steps in a trial's folder."""
    workdir = folder.parents[1]
    while True:
        assert started.running, f"it ended early: {started.end()}"
        log = folder / "metrics.jsonl"
        found = [each for each in workers(workdir) if each != other_than]
        if found and log.exists() and len(log.read_text().splitlines()) >= steps:
            return found[0]
