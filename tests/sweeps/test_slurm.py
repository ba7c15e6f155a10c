"""Slurm gets the commands of jobs, and whoever has no Slurm is told so."""

import contextlib
import sys

import launcher_contract
import pytest
from commands import ROOT

from experiments.runs.run_options import USUAL
from experiments.sweeps import jobs
from experiments.sweeps.folder import lock
from experiments.sweeps.launchers import launch, slurm


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


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
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


def test_slurm_without_submitit_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r'needs submitit: pip install "lora-jax\[slurm\]"'):
        slurm.submit([["true"]], tmp_path, {})


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_jobs_that_run_are_not_submitted_again(tmp_path, monkeypatch, capsys):
    folder, found = launcher_contract.sweep(tmp_path, "config.seed=0:4")
    submitted = []
    monkeypatch.setattr(slurm, "submit", lambda lines, *_: submitted.append(lines) or [])
    for name in ("options", "cluster", "waits"):
        monkeypatch.setattr(slurm, name, lambda: None)

    def again():
        launch.launch("slurm", jobs.make(found, 2), folder, None, (), None, USUAL)

    with contextlib.ExitStack() as held:
        for trial in found[:2]:
            folder.begin(trial.name)
            held.enter_context(lock(folder.lock_file(trial.name)))
        again()
        [[line]] = submitted
        assert [word for word in line if "--trial" in word] == ["--trial=seed=2", "--trial=seed=3"]
        for trial in found[2:]:
            folder.begin(trial.name)
            held.enter_context(lock(folder.lock_file(trial.name)))
        again()
    assert len(submitted) == 1
    assert capsys.readouterr().out.endswith("all jobs are running already: none is submitted\n")
