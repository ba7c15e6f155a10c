"""What all launchers have in common, without training: `stub_worker` stands in for the worker."""

import shlex
import socket
import subprocess
import sys
import types

import launcher_contract
import pytest
from absl import flags
from absl.testing import flagsaver
from commands import ROOT

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
    for name in ("slurm_gpus", "ray_gpus", "per_job"):
        flags.DEFINE_integer(name, 0, "help", flag_values=values)
    values(["command", "--slurm_gpus=1", "--per_job=2"])
    launch.require_own_flags("slurm", values)
    for launcher in ("local", "ray", "print"):
        said = f"^--slurm_gpus goes with --launcher=slurm, and --launcher={launcher} would ignore"
        with pytest.raises(ValueError, match=said):
            launch.require_own_flags(launcher, values)


def test_ray_that_is_not_installed_or_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ValueError, match=r'^--launcher=ray needs Ray: pip install "lora-jax\[ray\]"'
    ):
        ray.connected("auto").__enter__()
    monkeypatch.setitem(sys.modules, "ray", object())
    with socket.socket() as taken:  # nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for given, environment in ((address, ""), ("auto", address)):
            monkeypatch.setenv("RAY_ADDRESS", environment)
            with pytest.raises(ValueError, match=f"^no Ray cluster answers at {address}: Conn"):
                ray.connected(given).__enter__()


def test_the_address_of_a_cluster_has_a_form():
    flags.FLAGS.mark_as_parsed()
    for good in ("auto", "local", "127.0.0.1:6379", "head.example.org:6379", "[::1]:6379"):
        with flagsaver.flagsaver(ray_address=good):
            assert ray.address() == good
    for wrong, said in (
        ("lokal", "expected HOST:PORT, auto or local; nearest: 'local'"),
        ("head", "expected HOST:PORT"),
        ("ray://head:10001", "start the sweep on a machine of the cluster"),
    ):
        with flagsaver.flagsaver(ray_address=wrong), pytest.raises(ValueError, match=said):
            ray.address()
    both = flagsaver.flagsaver(ray_gpus=1, ray_tpus=4)
    with both, pytest.raises(ValueError, match=r"^--ray_gpus and --ray_tpus: .* give one$"):
        ray.demand()


def test_a_job_must_fit_on_one_machine():
    machines = [{"CPU": 8.0, "memory": 16.0 * 2**30}, {"CPU": 2.0, "GPU": 1.0, "memory": 2.0**30}]
    assert ray.Demand(cpus=8, memory=16).shortage(machines) == ""
    assert ray.Demand(cpus=2, gpus=1).shortage(machines) == ""
    for demand, said in (
        (ray.Demand(cpus=9), "--ray_cpus=9: no machine of the Ray cluster has more than 8"),
        (ray.Demand(tpus=4), "--ray_tpus=4: no machine of the Ray cluster has more than 0"),
        (
            ray.Demand(cpus=1, memory=17),
            "--ray_memory=17: no machine of the Ray cluster has more than 16",
        ),
        (
            ray.Demand(cpus=8, gpus=1),
            "no machine of the Ray cluster has --ray_cpus and --ray_gpus at once",
        ),
    ):
        assert demand.shortage(machines) == said
    assert ray.Demand().shortage([]) != ""


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
