"""A run that is killed or interrupted goes on from its checkpoints and ends with the same bits."""

import copy
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from killed import Killed
from small_training import ADAM, batches, fit, make, own, problem

from lora_jax.compiled.audit import Audit, Finding
from lora_jax.files import full_disk
from lora_jax.records import metrics_log
from lora_jax.training import checkpoint
from lora_jax.training.outcome import Outcome
from lora_jax.training.saved_trials import without_optimizer
from lora_jax.training.step import TrainState

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that was never stopped, and the lines of its metrics."""
    folder = tmp_path_factory.mktemp("straight")
    with jax.numpy_dtype_promotion("standard"):
        state, outcome = fit(folder)
    return state, outcome, metrics_log.read_metrics(folder / "metrics.jsonl")


def assert_same_bits(ours, others):
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(others), strict=True):
        if jnp.issubdtype(mine.dtype, jax.dtypes.prng_key):
            mine, theirs = jax.random.key_data(mine), jax.random.key_data(theirs)
        np.testing.assert_array_equal(mine, theirs)


def assert_same_end(folder, ours, straight):
    """Bits, outcome and lines of the metrics are those of the run that was never stopped."""
    (again, resumed), (state, outcome, rows) = ours, straight
    assert_same_bits(again, state)
    resumed, outcome = copy.deepcopy((resumed, outcome))
    for each in (resumed, outcome):
        assert each.evaluations[-1]["seconds"] == each.seconds > 0
        each.seconds = 0  # which differ, of course
        each.evaluations = [{**row, "seconds": 0} for row in each.evaluations]
    assert resumed == outcome
    assert metrics_log.read_metrics(folder / "metrics.jsonl") == rows


@pytest.mark.parametrize("killed_at", [1, 20])  # before any checkpoint, and with lines after one
def test_a_killed_run_ends_with_the_same_bits(tmp_path, killed_at, straight):
    with pytest.raises(Killed):
        fit(tmp_path, killed_at=killed_at)
    assert_same_end(tmp_path, fit(tmp_path), straight)


@pytest.mark.parametrize("call", [2, 4])  # of the checkpoints of steps 5, 7, 10 and 14
def test_a_run_on_a_full_disk_ends_with_the_same_bits_once_there_is_room(
    tmp_path, call, straight, monkeypatch
):
    calls = iter(range(1, 100))

    def usage(folder):
        return types.SimpleNamespace(free=10**9 if next(calls) < call else 0)

    with monkeypatch.context() as patch, pytest.raises(full_disk.FullDiskError, match="is full"):
        patch.setattr(shutil, "disk_usage", usage)
        fit(tmp_path)
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
        assert saved.steps()[-1] == [5, 7, 10][call - 2]
    assert_same_end(tmp_path, fit(tmp_path), straight)


@pytest.mark.parametrize("stops", [(1, 7), (20,)])
def test_an_interrupted_run_saves_that_step_and_ends_with_the_same_bits(tmp_path, stops, straight):
    for step in stops:
        _, outcome = fit(tmp_path, interrupted=lambda number, step=step: number == step)
        assert (outcome.interrupted, outcome.steps) == (True, step)
        with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
            assert saved.steps()[-1] == step
        rows = metrics_log.read_metrics(tmp_path / "metrics.jsonl")
        due = {number for number in range(1, step + 1) if number % 3 == 0 or number % 7 == 0}
        assert {row["step"] for row in rows} == due | {20} & {step}
    resumed = fit(tmp_path)
    assert not resumed[1].interrupted
    assert_same_end(tmp_path, resumed, straight)


def test_few_steps_wait_for_the_device_when_one_asks_whether_to_stop(tmp_path, monkeypatch):
    """Else a SIGTERM would be seen once all steps up to the next log have been computed."""
    ready, found = [], []
    monkeypatch.setattr(jax, "block_until_ready", lambda values: ready.append(values) or values)
    fit(tmp_path, interrupted=lambda number: found.append((number, len(ready))))
    assert found == [(number, max(0, number - 2)) for number in range(1, 21)]


@pytest.mark.parametrize("keep", [0, 1])
def test_a_run_does_not_go_on_without_the_lines_that_it_has_written(tmp_path, straight, keep):
    path = tmp_path / "metrics.jsonl"
    fit(tmp_path, interrupted=lambda number: number == 8)
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]) if keep else b"")
    with pytest.raises(ValueError, match=r"metrics.jsonl has lost lines .* step 8 was saved"):
        fit(tmp_path)
    path.write_bytes(whole)
    assert_same_end(tmp_path, fit(tmp_path), straight)


def test_a_resumed_run_keeps_what_the_audit_found(tmp_path):
    """It is not asked again; where nothing was saved yet, it is."""
    found = Audit(Finding("loss", 1e-7, 4e-6), 2, 3.0, 2.0, {})
    asked = []

    def audit(state):
        asked.append(int(state.step))
        return found

    with pytest.raises(Killed):
        fit(tmp_path, killed_at=2, audit=audit)
    _, outcome = fit(tmp_path, interrupted=lambda number: number == 3, audit=audit)
    assert asked == [0, 0] and outcome.audit == found.values()
    assert outcome.seconds > 2.0  # with the compilation that the audit took over
    _, outcome = fit(tmp_path, audit=audit)
    assert asked == [0, 0] and outcome.steps == 20
    expected = {"leaf": "loss", "error": 1e-7, "tolerance": 4e-6, "batches": 2}
    assert outcome.audit == expected


def test_an_audit_that_fails_comes_before_everything(tmp_path):
    def audit(state):
        raise ValueError("the compiled step is wrong")

    with pytest.raises(ValueError, match="is wrong"):
        fit(tmp_path, audit=audit, evaluate_first=True, scores=lambda _: 1 / 0)
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
        assert not saved.steps()


def test_an_interruption_is_never_the_best(tmp_path):
    _, outcome = fit(tmp_path, evaluate_every=0, interrupted=lambda number: number == 4)
    assert (outcome.steps, outcome.best_step) == (4, None)


def test_checkpoints_from_before_runs_could_be_interrupted(tmp_path):
    fit(tmp_path, interrupted=lambda number: number == 4)
    true_restore = checkpoint.Checkpoints.restore

    def restore(self, state):
        state, meta, step = true_restore(self, state)
        assert meta["outcomes"][0].pop("interrupted") is False
        return state, meta, step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "restore", restore)
        assert fit(tmp_path)[1].steps == 20


def test_a_run_continues_from_the_layout_of_checkpoints(tmp_path, straight):
    """Here by hand; the evaluation of step 4 stays the best."""
    adapted, trainable, frozen = problem(dropout=0.2)
    state = TrainState.create(adapted, ADAM, own(trainable), frozen, jax.random.key(1))
    source = batches(0)
    outcome = {"seconds": 1.5, "metrics_last": {"accuracy": 2.0}, "metrics_best": {"accuracy": 2.0}}
    outcome |= {"best_step": 4, "target_step": None, "target_seconds": None, "diverged": False}
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
        for step in range(1, 6):
            state, _ = make(adapted, ADAM)(state, frozen, next(source))
            if step == 4:
                best = jax.tree.map(jnp.copy, without_optimizer(state))
        meta = {"outcomes": [outcome | {"steps": 5}], "identity": {}}
        saved.save(5, {"now": [state], "best": [best]}, meta)
    continued = shutil.copytree(tmp_path, tmp_path.with_name("continued"))
    again, resumed = fit(tmp_path)
    wanted, _, rows = straight
    assert_same_bits(again, wanted)
    assert (resumed.steps, resumed.best_step, resumed.evaluations) == (20, 4, None)
    assert resumed.seconds > 1.5
    found = metrics_log.read_metrics(tmp_path / "metrics.jsonl")
    assert found == [row for row in rows if row["step"] > 5]
    state, _ = fit(continued, chosen="best")
    assert_same_bits(state, best)


def test_the_metrics_of_other_processes_are_not_written(tmp_path):
    with metrics_log.Metrics(tmp_path / "none", enabled=False) as log:
        log.write(1, {"loss": 1.0})
        log.truncate(0)
    assert not (tmp_path / "none").exists()


def test_who_catches_an_error_knows_how_far_the_run_came(tmp_path):
    outcome = Outcome()
    with pytest.raises(Killed):
        fit(tmp_path, killed_at=13, outcome=outcome)
    assert (outcome.steps, outcome.best_step) == (12, 7)
    assert outcome.metrics_last == outcome.metrics_best != {}
    assert outcome.seconds > 0
