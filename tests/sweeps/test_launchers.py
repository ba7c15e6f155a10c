"""What all launchers have in common, without training: `stub_worker` stands in for the worker.

Slurm and Ray get the commands of jobs. A job that a scheduler asks to end saves its state, and
begins again without a failed attempt.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import types

import launcher_contract
import pytest
from absl import flags
from absl.testing import flagsaver
from commands import ROOT

from experiments.runs.run_options import USUAL
from experiments.sweeps import jobs
from experiments.sweeps.folder import LockedError, SweepFolder, lock, locked
from experiments.sweeps.launchers import launch, local, ray, slurm

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def by_local(todo, folder, command):
    local.launch(todo, folder, [local.Slot({}, ())], lambda: None, command)


def by_slurm(todo, folder, command):
    """By submitit's executor of local processes."""
    pytest.importorskip("submitit")
    lines = [command(folder, job) for job in todo]
    submitted = slurm.submit(lines, folder.path / "slurm", {}, "local")
    slurm.watch(submitted, lambda: None)


def by_hand(todo, folder, command):
    """As one would type what --launcher=print prints."""
    for job in todo:
        subprocess.run(shlex.join(command(folder, job)), shell=True, check=False)


@pytest.mark.parametrize("by", [by_local, by_slurm, by_hand])
def test_every_launcher_trains_each_trial_once(by, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    launcher_contract.check(tmp_path, by)


def test_a_flag_of_another_launcher_is_refused():
    values = flags.FlagValues()
    for name in ("slurm", "ray", "per_job"):
        flags.DEFINE_integer(name, 0, "help", flag_values=values)
    values(["command", "--slurm=1", "--per_job=2"])
    launch.require_own_flags("slurm", values)
    for launcher in ("local", "ray", "print"):
        said = f"^--slurm goes with --launcher=slurm, and --launcher={launcher} would ignore"
        with pytest.raises(ValueError, match=said):
            launch.require_own_flags(launcher, values)


@pytest.mark.parametrize(
    ("launcher", "module", "extra"), [("ray", "ray", "ray"), ("slurm", "submitit", "slurm")]
)
def test_a_launcher_that_is_not_installed_says_what_to_install(
    monkeypatch, launcher, module, extra
):
    flags.FLAGS.mark_as_parsed()
    monkeypatch.setitem(sys.modules, module, None)
    said = rf'^--launcher={launcher} needs .*: pip install "lora-jax\[{extra}\]"'
    with pytest.raises(ValueError, match=said):
        launch.require(launcher)


def test_a_ray_cluster_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", object())
    with socket.socket() as taken:  # nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for given, environment in ((address, ""), ("auto", address)):
            monkeypatch.setenv("RAY_ADDRESS", environment)
            with pytest.raises(ValueError, match=f"^no Ray cluster answers at {address}: Conn"):
                ray.connected(given).__enter__()
        with pytest.raises(ValueError, match="no Ray cluster answers at lokal"):
            ray.connected("lokal").__enter__()


def test_what_each_job_gets():
    flags.FLAGS.mark_as_parsed()
    assert ray.demand() == {"CPU": 1, "memory": 0}
    with flagsaver.flagsaver(ray=["cpus=4", "tpus=8", "memory=2"]):
        assert ray.demand() == {"CPU": 4, "TPU": 8, "memory": 2 * 2**30}
    with flagsaver.flagsaver(slurm=["partition=7", "gpus=1"]):
        assert slurm.options() == {"slurm_partition": "7", "gpus_per_node": 1}
    quoted = flags.FLAGS["slurm"].parser.parse('"partition=gpu,long",gpus=1')  # as the help says
    with flagsaver.flagsaver(slurm=quoted):
        assert slurm.options() == {"slurm_partition": "gpu,long", "gpus_per_node": 1}
    for launcher, name, items, said in (
        (ray, "ray", ["gpus=1", "tpus=4"], "--ray: a job runs on one kind of device"),
        (ray, "ray", ["gpus=x"], "--ray=gpus=x: expected a whole number, such as gpus=1"),
        (slurm, "slurm", ["gpu=1"], "--slurm=gpu=1: no such resource; nearest: 'gpus'"),
        (slurm, "slurm", ["partition"], "--slurm=partition: expected a value"),
        (slurm, "slurm", ["gpus=1", "gpus=2"], "--slurm=gpus=2: gpus is given twice"),
        (slurm, "slurm", ["cpus=0"], "--slurm=cpus=0: expected a whole number above 0"),
    ):
        with flagsaver.flagsaver(**{name: items}), pytest.raises(ValueError, match=f"^{said}"):
            launcher.demand() if launcher is ray else launcher.options()


def test_a_job_must_fit_on_one_machine():
    machines = [{"CPU": 8.0, "memory": 16.0}, {"CPU": 2.0, "GPU": 1.0, "memory": 1.0}]
    for fits in ({"CPU": 8, "memory": 16}, {"CPU": 2, "GPU": 1}, {"CPU": 1, "TPU": 0}):
        assert ray.shortage(fits, machines) == ""
    for large in ({"CPU": 9}, {"TPU": 4}, {"CPU": 1, "memory": 17}, {"CPU": 8, "GPU": 1}):
        assert ray.shortage(large, machines).startswith("--ray: no machine of the Ray cluster has")
    assert ray.shortage({"CPU": 1}, []) == "--ray: no machine of the Ray cluster has 1 CPU"


def test_a_worker_waits_for_all_its_trials_together(tmp_path, monkeypatch, capsys):
    """What one that another process keeps has cost, the next ones do not wait for again."""
    folder, found = launcher_contract.sweep(tmp_path, "config.seed=0:3")
    clock, waits, begun = [0.0], [], []

    def waiting(path, wait):
        waits.append(wait)
        clock[0] += wait if locked(path) else 0.0
        return lock(path)

    def train(configs, folders, given, how):
        begun.extend(given)
        return [RuntimeError("not trained")] * len(given)

    monkeypatch.setattr(jobs, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(jobs, "lock", waiting)
    with lock(folder.lock_file("seed=0")), lock(folder.lock_file("seed=1")):
        assert not jobs.work(folder, [trial.name for trial in found], train=train, wait=100)
    assert waits == [100, 0, 0]
    assert begun == ["seed=2"]
    assert capsys.readouterr().out.count("is working on") == 2


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("experiments.sweeps.folder.fcntl.flock", no_locks)
    said = rf"^{tmp_path}: the file system has no locks \(No locks available\)"
    with pytest.raises(OSError, match=said) as caught:
        SweepFolder(tmp_path).held(None).__enter__()
    assert not isinstance(caught.value, LockedError)


def test_an_option_that_submitit_does_not_know_is_one_line(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(ValueError, match=r"^--launcher=slurm: .*no_such_option"):
        slurm.submit([["true"]], tmp_path / "slurm", {"no_such_option": 1}, "local")


def test_what_slurm_refuses_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    refuses = "#!/bin/sh\necho 'sbatch: error: invalid partition specified: nope' >&2\nexit 1\n"
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(refuses)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    said = "^--launcher=slurm: no job was submitted: .*invalid partition specified: nope"
    with pytest.raises(ValueError, match=said) as caught:
        slurm.submit([["true"]], tmp_path / "slurm", {"slurm_partition": "nope"})
    assert "\n" not in str(caught.value)


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


def test_jobs_that_run_are_not_submitted_again(tmp_path, monkeypatch, capsys):
    folder, found = launcher_contract.sweep(tmp_path, "config.seed=0:4")
    submitted = []
    monkeypatch.setattr(slurm, "submit", lambda lines, *_: submitted.append(lines) or [])
    flags.FLAGS.mark_as_parsed()

    def again():
        launch.launch("slurm", jobs.make(found, 2), folder, None, (), None, USUAL)

    with contextlib.ExitStack() as held:
        for trial in found[:2]:
            folder.begin(trial.name)
            held.enter_context(lock(folder.lock_file(trial.name)))
        again()
        [[line]] = submitted
        assert line[-1] == "--lock_wait=120"  # of a machine that died, whose locks stay a while
        assert [word for word in line if "--trial" in word] == ["--trial=seed=2", "--trial=seed=3"]
        for trial in found[2:]:
            folder.begin(trial.name)
            held.enter_context(lock(folder.lock_file(trial.name)))
        again()
    assert len(submitted) == 1
    assert capsys.readouterr().out.endswith("all jobs are running already: none is submitted\n")


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
def fake_ray(monkeypatch):
    """That module, in a process with the handler of a worker of Ray."""
    pickling = types.SimpleNamespace(register_pickle_by_value=lambda module: None)
    monkeypatch.setitem(sys.modules, "ray.cloudpickle", pickling)
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(cloudpickle=pickling))
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    yield Ray()
    signal.signal(signal.SIGTERM, before)


def test_a_job_of_ray_that_saved_has_not_failed(tmp_path, fake_ray, capsys):
    """Its machine asks it to end more often than it may fail; then it fails, and begins again."""
    folder, found = launcher_contract.sweep(tmp_path, "config.seed=0")

    def command(folder, job):
        return worker(tmp_path / "saved", 3, "parent")

    ray.launch([found], folder, fake_ray, {"CPU": 1}, 1, lambda: None, command)
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
