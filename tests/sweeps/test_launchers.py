"""What all launchers have in common, without training: `stub_worker` stands in for the worker."""

import json
import shlex
import subprocess
import sys

import job_controller
import launcher_contract
import pytest
import yaml
from absl import flags
from commands import ROOT

from experiments.sweeps import job_list, jobs
from experiments.sweeps.folder import LockedError, SweepFolder, lock
from experiments.sweeps.launchers import kubernetes, local, names, slurm

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


def by_kubernetes(todo, folder, command):
    """By processes that see the volume where the pods do."""
    pods = kubernetes.Pods(
        image="image",
        claim="claim",
        folder=folder.path,
        mount=folder.path.parent,
        command=(sys.executable, str(launcher_contract.STUB)),
        directory=str(ROOT),
    )
    said = kubernetes.write(todo, folder, pods)
    path = shlex.split(said[1])[-1]
    with open(path, encoding="utf-8") as file:
        fates = job_controller.run(yaml.safe_load(file), job_controller.pod)
    assert [fate for fate, _ in fates.values()] == ["Failed", "Succeeded"]


@pytest.mark.parametrize("launch", [by_local, by_slurm, by_hand, by_kubernetes])
def test_every_launcher_trains_each_trial_once(launch, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    launcher_contract.check(tmp_path, launch)


def test_a_flag_of_another_launcher_is_refused():
    values = flags.FlagValues()
    for name in ("slurm_gpus", "ray_gpus", "kubernetes_gpus", "per_job"):
        flags.DEFINE_integer(name, 0, "help", flag_values=values)
    values(["command", "--slurm_gpus=1", "--per_job=2"])
    names.require_own_flags("slurm", values)
    for launcher in ("local", "ray", "kubernetes", "print"):
        said = f"^--slurm_gpus goes with --launcher=slurm, and --launcher={launcher} would ignore"
        with pytest.raises(ValueError, match=said):
            names.require_own_flags(launcher, values)


def test_a_list_gives_each_worker_its_job(tmp_path):
    path = tmp_path / "jobs" / "name.json"
    job_list.write(path, [["seed=0", "seed=1"], ["seed=2"]])
    assert [job_list.read(path, n) for n in (0, 1)] == [["seed=0", "seed=1"], ["seed=2"]]
    for number in (2, -1):
        with pytest.raises(ValueError, match=f"^--job={number}: .* has the jobs 0 to 1$"):
            job_list.read(path, number)
    for wrong in ({}, {"version": 2, "jobs": []}, {"version": 1, "jobs": [[]]}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"is no list of jobs"):
            job_list.read(path, 0)


def test_a_worker_waits_for_all_its_trials_together(tmp_path, monkeypatch, capsys):
    """One that another process keeps costs the time of all, and the free ones are trained."""
    folder, found = launcher_contract.sweep(tmp_path, "config.seed=0:3")
    begun = []

    def train(configs, folders, given, how):
        begun.extend(given)
        return [RuntimeError("not trained")] * len(given)

    with lock(folder.lock("seed=0")), lock(folder.lock("seed=1")):
        assert not jobs.work(folder, [trial.name for trial in found], train=train, wait=0.2)
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
