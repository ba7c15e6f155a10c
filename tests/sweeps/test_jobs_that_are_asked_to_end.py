"""Jobs that a scheduler asks to end save their state, and begin again without a failed attempt."""

import os
import shlex
import signal
import subprocess
import sys
import types

import launcher_contract
import pytest
from absl import flags
from commands import ROOT
from rich.console import Console

from experiments.runs.run_options import USUAL
from experiments.sweeps.launchers import launch, local, ray as ray_launcher, slurm
from experiments.sweeps.view import View

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

# Saves when it is asked to end, and has nothing left to do once it has saved so often. Where its
# parent is to ask it, it also dies once, in the end.
WORKER = """
import os, pathlib, signal, sys
_, saved, times, begun, *_ = sys.argv
done = len(pathlib.Path(saved).read_text()) if os.path.exists(saved) else 0
if done == int(times) and begun == "parent" and not os.path.exists(f"{saved}.died"):
    open(f"{saved}.died", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
if done == int(times):
    sys.exit()
def save(*_):
    with open(saved, "a") as file:
        file.write("x")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
if begun == "parent":
    os.kill(os.getppid(), signal.SIGTERM)
else:
    open(begun, "w").close()
while True:
    signal.pause()
"""


def worker(saved, times, begun):
    return [sys.executable, "-c", WORKER, str(saved), str(times), str(begun)]


# What Slurm's programs do, as far as a job sees it.
SLURM = {
    "sbatch": "echo Submitted batch job 7",
    "srun": 'shift 5; echo $$ > {folder}/task; exec "$@"',
    "squeue": "cat {folder}/state",
    "scontrol": "echo $@ >> {folder}/asked",
}


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """The script of a job of `WORKER` in a Slurm that is stood in for, and where it begins."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(ROOT)
    for name, code in SLURM.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{code.format(folder=shlex.quote(str(tmp_path)))}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    os.mkfifo(tmp_path / "begun")
    line = worker(tmp_path / "saved", 1, tmp_path / "begun")
    (job,) = slurm.submit([line], tmp_path / "slurm", {})
    return job.paths.submission_file


@pytest.mark.parametrize(
    ("number", "state", "asked"),
    [
        (signal.SIGTERM, "RUNNING", "requeue 7\n"),  # preempted, with time until its end
        (signal.SIGTERM, "COMPLETING", ""),  # cancelled, or queued again by Slurm itself
        (signal.SIGUSR2, "RUNNING", "requeue 7\n"),  # before the time limit
    ],
)
def test_a_job_of_slurm_saves_before_it_ends(submitted, tmp_path, number, state, asked):
    """Slurm's signals reach the script, when it ends a job, and the task, but not its children."""
    (tmp_path / "state").write_text(f"{state}\n")
    with subprocess.Popen(["bash", submitted]) as script:
        (tmp_path / "begun").read_text()  # waits until it is written
        if number == signal.SIGTERM:
            script.send_signal(number)
        os.kill(int((tmp_path / "task").read_text()), number)
        assert script.wait(60) != 0
    assert (tmp_path / "saved").read_text() == "x"
    found = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    assert found == asked
    subprocess.run(["bash", submitted], check=True)  # when it is queued again, it goes on


def test_a_job_of_slurm_waits_for_the_locks_of_a_machine_that_died(tmp_path, monkeypatch):
    """Slurm queues it again, and the file system may keep them for a while."""
    flags.FLAGS.mark_as_parsed()
    folder, found = launcher_contract.sweep(tmp_path, "config.seed=0")
    lines = []
    monkeypatch.setattr(slurm, "submit", lambda given, *_: lines.extend(given) or [])
    launch.launch("slurm", [found], folder, View([], [], folder, Console()), [], None, USUAL)
    assert [line[-1] for line in lines] == ["--lock_wait=120"]


def test_a_job_of_slurm_may_meet_its_time_limit_often(submitted):
    """submitit counts them, though each has saved, and gives up after three by itself."""
    helpers = pytest.importorskip("submitit").core.utils
    path = submitted.with_name("7_submitted.pkl")
    assert helpers.DelayedSubmission.load(path)._timeout_countdown == 100


class Ray:
    """Ray's module, as far as a launcher sees it; each task runs here, when it is waited for."""

    class exceptions:
        RayError = RuntimeError

    def __init__(self):
        self._ends = {}

    def remote(self, **_):
        return lambda function: types.SimpleNamespace(
            remote=lambda *arguments: lambda: function(*arguments)
        )

    def wait(self, references, timeout):
        try:
            self._ends[references[0]] = references[0]()
        except SystemExit:  # with which Ray's workers end on SIGTERM
            self._ends[references[0]] = None
        return references[:1], references[1:]

    def get(self, reference):
        if (end := self._ends[reference]) is None:
            raise RuntimeError("the worker died")
        return end


@pytest.fixture
def ray(monkeypatch):
    """That module, in a process with the handler of a worker of Ray."""
    pickling = types.SimpleNamespace(register_pickle_by_value=lambda module: None)
    monkeypatch.setitem(sys.modules, "ray.cloudpickle", pickling)
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(cloudpickle=pickling))
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    yield Ray()
    signal.signal(signal.SIGTERM, before)


def test_a_job_of_ray_that_saved_has_not_failed(tmp_path, ray, capsys):
    """Its machine asks it to end more often than it may fail; then it fails, and begins again."""
    folder, found = launcher_contract.sweep(tmp_path, "config.seed=0")

    def command(folder, job):
        return worker(tmp_path / "saved", 3, "parent")

    ray_launcher.launch([found], folder, ray, ray_launcher.Demand(), 1, lambda: None, command)
    assert (tmp_path / "saved").read_text() == "xxx"
    assert capsys.readouterr().out.count("its job begins again") == 1
    assert folder.state(found[0]).note.startswith("its process ended with code 0; ")


def test_a_second_sigterm_does_not_cut_the_saving_short():
    saved = []
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)]
    try:
        with pytest.raises(SystemExit, match="75"), launch.stopped_by_signals():
            try:
                signal.raise_signal(signal.SIGTERM)
            except local.Terminated:
                signal.raise_signal(signal.SIGTERM)
                saved.append(True)
                raise
    finally:
        for each, handler in zip((signal.SIGTERM, signal.SIGHUP), before, strict=True):
            signal.signal(each, handler)
    assert saved
