"""Runs whose step is audited before they train: what is recorded, skipped, and stopped."""

import dataclasses

import jax
import pytest
import small_model

from experiments.runs import run, step_audit
from experiments.runs.group import Group
from experiments.runs.run_options import RunOptions
from experiments.setup.experiment import Experiment, build
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.jobs import command
from lora_jax.compiled import audit
from lora_jax.records import run_record
from lora_jax.sharding import memory
from lora_jax.training import trial_program

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    made = small_model.smoke_runs(tmp_path_factory.mktemp("small"))
    few = {"targets": ("query/kernel",), "train__max_steps": 2, "train__log_every": 1}
    return lambda **changes: made("", **few | changes)


@dataclasses.dataclass
class Wrong:
    """A step whose loss is right and whose gradients are upside down."""

    step: object

    def trace(self, *arguments):
        return self.step.trace(*arguments)

    def __call__(self, *arguments):
        state, metrics = self.step(*arguments)
        opt_state = jax.tree.map(lambda x: -x if x.ndim == 3 else x, state.opt_state)
        return dataclasses.replace(state, opt_state=opt_state), metrics


def test_a_wrong_step_does_not_train(smoke, tmp_path, monkeypatch):
    """Nothing is saved, one line says why, and the folder is as good as new."""
    made = Experiment.make_step
    config, folder = smoke(), tmp_path / "run"
    monkeypatch.setattr(Experiment, "make_step", lambda self: Wrong(made(self)))
    said = r"gradient of layers/attention/query/kernel/[ab] is off by \S+, and dtypes explain only"
    with pytest.raises(ValueError, match=said) as caught:
        run.run(config, folder)
    message = str(caught.value)
    assert "for batches of 8 x 24: " in message and "\n" not in message
    assert "XLA_FLAGS=" in message and message.endswith("--noaudit")
    record = run_record.read(folder)
    assert record.status == "failed" and record.audit is None and record.steps == 0
    assert record.note == f"ValueError: {message}"
    assert not list((folder / "checkpoints").glob("[0-9]*"))
    assert not (folder / "adapter.safetensors").exists()
    assert not (folder / "metrics.jsonl").read_bytes()

    monkeypatch.setattr(Experiment, "make_step", made)
    record = run.run(config, folder)
    assert record.status == "completed" and record.steps == 2
    assert record.audit.keys() == {"leaf", "error", "tolerance", "batches"}
    assert record.audit["batches"] == 1 and record.audit["leaf"]
    assert 0 < record.audit["error"] < record.audit["tolerance"] == audit.FLOOR
    assert record.seconds > 0
    other = run.run(config, tmp_path / "other", audit=False)
    assert other.audit is None
    for name in ("adapter.safetensors", "metrics.jsonl"):  # it leaves no trace in what follows
        assert (folder / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_wrong_program_trains_none_of_its_trials(smoke, tmp_path, monkeypatch):
    made = Group.program

    def wrong(self, execution):
        program = made(self, execution)
        return dataclasses.replace(program, jitted=Wrong(program.jitted))

    monkeypatch.setattr(Group, "program", wrong)
    configs, folders = [smoke(), smoke(seed=1)], [tmp_path / "0", tmp_path / "1"]
    with pytest.raises(ValueError, match=r"query/kernel/[ab] is off by"):
        run.run_together(configs, folders, RunOptions("each"))
    for each in map(run_record.read, folders):
        assert each.status == "failed" and "query/kernel/" in each.note and each.steps == 0
    assert not list(tmp_path.glob(".programs/*/checkpoints/[0-9]*"))


def test_all_shapes_of_a_run_are_looked_at(smoke):
    """Of all its trials, which may have drawn other examples."""
    many = {"data__buckets": 3, "data__max_length": 64, "train__max_steps": 0, "train__epochs": 3}
    experiments = [build(smoke(data__draw=draw, data__train=16, **many)) for draw in range(3)]
    steps = experiments[0].loop.steps
    planned = [
        [batch.padded_length for batch, _ in zip(each.plan().start(), range(steps), strict=False)]
        for each in experiments
    ]
    found = step_audit._shapes(experiments)
    lengths = [length for length, _ in found]
    assert lengths == sorted(set().union(*planned)) and set(lengths) > set(planned[0])
    assert [planned[trial][step] for _, (trial, step) in found] == lengths


def test_what_it_compiles_is_what_the_run_takes(smoke, compilations):
    experiment = build(smoke())
    step, state = experiment.make_step(), experiment.start()
    program = trial_program.alone(step, experiment.frozen)
    # The second trial would have a call of its own, so its state is not copied.
    assert step_audit.of_program([experiment] * 2, program, [state, None]).batches == 1
    with compilations() as counted:
        program.step(program.start([state]), [next(experiment.batches(0))])
    assert not counted and step._cache_size() == 1


def test_what_is_not_audited_says_so(smoke, monkeypatch, capsys):
    experiment = build(smoke())
    # Whoever looked would raise.
    program = trial_program.alone(Wrong(experiment.make_step()), experiment.frozen)
    given = [experiment], program, [experiment.start()]
    monkeypatch.setattr(step_audit, "LARGEST", 1000)
    assert step_audit.of_program(*given) is None
    assert "not audited: the model has " in capsys.readouterr().out
    monkeypatch.setattr(step_audit, "LARGEST", 10**9)
    monkeypatch.setattr(memory, "host_memory", lambda: 1000)
    assert step_audit.of_program(*given).values() is None
    said = capsys.readouterr().out
    assert "not audited for batches of 8 x 24: its evaluation by NumPy takes " in said
    monkeypatch.setattr(step_audit, "said_by_all", lambda machine: ["another", machine, machine])
    assert step_audit._room() == 500


def test_a_worker_is_told(tmp_path):
    folder = SweepFolder(tmp_path)
    assert "--noaudit" not in command(folder, [])
    assert command(folder, [], RunOptions(audit=False))[-1] == "--noaudit"
