"""The step against plain gradients, and the loop against itself after an interruption."""

import concurrent.futures
import copy
import functools
import math
import os
import shutil
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_jax as lj
import variants
from lora_jax.compiled.audit import Audit, Finding
from lora_jax.files import full_disk
from lora_jax.records import metrics_log
from lora_jax.training import checkpoint, loop as training_loop, preemption, trial_program
from lora_jax.training.loop_settings import Loop
from lora_jax.training.outcome import Outcome
from lora_jax.training.saved_trials import OneTrial
from lora_jax.training.step import TrainState, cross_entropy, make_step, make_train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")


def forward(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"] + params["bias"][None]


@functools.cache
def problem(dropout=0.0):
    random = np.random.default_rng(0)
    params = {
        "up": random.standard_normal((6, 8), np.float32),
        "down": random.standard_normal((8, 3), np.float32),
        "bias": np.zeros(3, np.float32),
    }
    lora = variants.make("lora", rank=2, dropout=dropout)
    adapted = lj.adapt(forward, lora, also_train=["bias"])
    init = jax.jit(adapted.init)
    return adapted, *init(jax.random.key(1), params, np.zeros((1, 6), np.float32))


def batches(start, size=8):
    step = start
    while True:
        rng = np.random.default_rng(step)
        weight = np.ones(size, np.float32)
        weight[size - step % 3 :] = 0  # some rows only fill the batch
        x = rng.normal(size=(size, 6)).astype(np.float32)
        yield {"x": x, "label": (x.sum(1) > 0).astype(np.int32), "weight": weight}
        step += 1


SGD, ADAM = optax.sgd(0.1), optax.adam(1e-2)


@functools.cache
def make(adapted, tx, accumulate=1):
    """The step, compiled once for all tests."""

    def predict(trainable, frozen, batch, rng):
        return adapted.apply(trainable, frozen, batch["x"], dropout_key=rng)

    return make_train_step(adapted, tx, predict, cross_entropy, accumulate)


merge = jax.jit(lambda adapted, *given: adapted.merge(*given), static_argnums=0)


def own(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), tree)


def test_a_step_is_gradient_descent_on_the_weighted_mean():
    adapted, trainable, frozen = problem()
    tx = SGD
    batch = next(batches(2))
    kept = batch["weight"] > 0
    assert 0 < kept.sum() < len(kept)

    def loss(trainable):
        logits = forward(adapted.merge(trainable, frozen), batch["x"][kept])
        picked = jax.nn.log_softmax(logits)[np.arange(kept.sum()), batch["label"][kept]]
        return -picked.mean()

    value, grads = jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss))(trainable))
    expected = jax.tree.map(lambda p, g: np.asarray(p) - 0.1 * g, trainable, grads)
    norm = sum(np.square(g).sum() for g in jax.tree.leaves(grads)) ** 0.5
    state = TrainState.create(adapted, tx, own(trainable), frozen, jax.random.key(1))
    state, metrics = make(adapted, tx)(state, frozen, batch)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    for ours, theirs in zip(
        jax.tree.leaves(state.trainable), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert int(state.step) == 1


def test_accumulation_gives_the_same_gradient():
    """Of one row at a time, some of which only fill the batch."""
    adapted, trainable, frozen = problem()
    tx = SGD
    results = []
    for accumulate in (1, 8):
        state = TrainState.create(adapted, tx, own(trainable), frozen, jax.random.key(1))
        state, metrics = make(adapted, tx, accumulate)(state, frozen, next(batches(2)))
        results.append((state.trainable, metrics))
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_parts_of_a_batch_have_keys_of_their_own_and_one_penalty():
    adapted, trainable, frozen = problem()
    penalised = types.SimpleNamespace(
        penalty=lambda *_: jnp.asarray(3.0), optimizer=adapted.optimizer, update=adapted.update
    )

    def drawn(trainable, frozen, batch, rng):
        return jnp.broadcast_to(jax.random.normal(rng), batch["weight"].shape)

    step = make_step(penalised, drawn, lambda each, batch: each, accumulate=2)
    state = TrainState.create(adapted, SGD, trainable, frozen, jax.random.key(1))
    batch = next(batches(0))
    _, metrics = jax.jit(functools.partial(step, SGD, None))(state, frozen, batch)
    keys = jax.random.split(jax.random.fold_in(state.rng, 0), 2)
    wanted = np.mean([jax.random.normal(key) for key in keys]) + 3
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-5)


def test_the_state_is_donated_and_the_frozen_weights_are_not():
    adapted, trainable, frozen = problem()
    tx = ADAM
    before = jax.tree.map(np.array, frozen.base)
    state = TrainState.create(adapted, tx, own(trainable), frozen, jax.random.key(1))
    step = make(adapted, tx)
    new, _ = step(state, frozen, next(batches(0)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.trainable))
    for _ in range(3):
        new, _ = step(new, frozen, next(batches(0)))
    for path, value in frozen.base.items():
        np.testing.assert_array_equal(value, before[path])


def test_one_compilation_for_all_steps_of_one_shape_and_other_dropout_in_each():
    """Nothing else moves the loss of one batch at a rate of zero."""
    adapted, trainable, frozen = problem(dropout=0.1)
    tx = optax.adam(optax.linear_schedule(0.0, 0.0, 10))
    step = make(adapted, tx)
    moved = jax.tree.map(lambda x: jnp.asarray(np.array(x) + np.float32(0.3)), trainable)
    state = TrainState.create(adapted, tx, moved, frozen, jax.random.key(1))
    losses = set()
    for _ in range(5):
        state, metrics = step(state, frozen, next(batches(0)))
        losses.add(float(metrics["loss"]))
    assert step._cache_size() == 1 and len(losses) == 5


class Killed(Exception):
    pass


def fit(
    folder,
    *,
    killed_at=None,
    poison=None,
    tx=ADAM,
    scores=None,
    outcome=None,
    interrupted=None,
    audit=None,
    evaluate_every=7,
    checkpoint_every=5,
    **loop,
):
    """A run of 20 steps; `scores(accuracy)` stands in for what an evaluation says."""
    adapted, trainable, frozen = problem(dropout=0.2)
    outcome = outcome or Outcome()

    def source(start):
        for number, batch in enumerate(batches(start), start + 1):
            if number == killed_at:
                raise Killed
            if number == poison:
                batch["x"] = batch["x"] * np.nan
            yield batch

    def evaluate(trainable):
        merged = merge(adapted, trainable, frozen)
        accuracy = np.abs(merged["up"]).sum()  # moves in some way, up and down
        assert np.isfinite(accuracy)
        found = float(np.sin(accuracy * 3))
        return {"accuracy": found if scores is None else scores(found)}

    with (
        checkpoint.Checkpoints(folder / "checkpoints", best=("accuracy", "max")) as saved,
        metrics_log.Metrics(folder) as log,
    ):
        (state,) = training_loop.fit(
            trial_program.alone(make(adapted, tx), frozen),
            [TrainState.create(adapted, tx, own(trainable), frozen, jax.random.key(1))],
            loops=[Loop(20, 3, evaluate_every, checkpoint_every, **loop)],
            batches=[source],
            evaluate=lambda _, trainable: evaluate(trainable),
            saved=OneTrial(saved, {}),
            metrics=[log],
            outcomes=[outcome],
            interrupted=interrupted,
            audit=None if audit is None else lambda states: audit(*states),
        )
    return state, outcome


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
    fit(tmp_path, evaluate_every=0, interrupted=lambda number: number == 4)
    with checkpoint.Checkpoints(tmp_path / "checkpoints", best=("accuracy", "max")) as saved:
        assert (saved.steps(), saved.best_step()) == ([4], None)


def test_checkpoints_from_before_runs_could_be_interrupted(tmp_path):
    fit(tmp_path, interrupted=lambda number: number == 4)
    true_restore = checkpoint.Checkpoints.restore

    def restore(self, state):
        state, meta, step = true_restore(self, state)
        assert meta["outcome"].pop("interrupted") is False
        return state, meta, step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "restore", restore)
        assert fit(tmp_path)[1].steps == 20


def test_a_run_continues_from_the_layout_of_checkpoints(tmp_path, straight):
    """As all versions write it, here by hand; the evaluation of step 4 stays the best."""
    adapted, trainable, frozen = problem(dropout=0.2)
    state = TrainState.create(adapted, ADAM, own(trainable), frozen, jax.random.key(1))
    source = batches(0)
    outcome = {"seconds": 1.5, "metrics_last": {"accuracy": 2.0}, "metrics_best": {"accuracy": 2.0}}
    outcome |= {"best_step": 4, "target_step": None, "target_seconds": None, "diverged": False}
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
        for step in range(1, 6):
            state, _ = make(adapted, ADAM)(state, frozen, next(source))
            if step >= 4:
                meta = {"outcome": outcome | {"steps": step}, "identity": {}}
                saved.save(step, state, meta | ({"accuracy": 2.0} if step == 4 else {}))
        best, _, _ = saved.restore(state, 4)
    again, resumed = fit(tmp_path)
    wanted, _, rows = straight
    assert_same_bits(again, wanted)
    assert (resumed.steps, resumed.best_step, resumed.evaluations) == (20, 4, None)
    assert resumed.seconds > 1.5
    found = metrics_log.read_metrics(tmp_path / "metrics.jsonl")
    assert found == [row for row in rows if row["step"] > 5]
    with checkpoint.Checkpoints(tmp_path / "checkpoints", best=("accuracy", "max")) as saved:
        (state,), notes = OneTrial(saved, {}).best([again], [resumed])
    assert_same_bits(state, best)
    assert notes == [""]


@pytest.mark.parametrize("signals", [1, 2])
def test_sigterm_is_told_after_the_step_that_it_came_in(tmp_path, signals):
    before = signal.getsignal(signal.SIGTERM)

    def scores(found):
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    with preemption.preemption() as interrupted:
        _, outcome = fit(tmp_path, scores=scores, interrupted=interrupted)
    assert (outcome.interrupted, outcome.steps) == (True, 8)  # the evaluation is that of step 7
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_sigterm_after_the_last_step_is_for_the_handler_before():
    told = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        with preemption.preemption() as interrupted:
            assert not interrupted(1)
            os.kill(os.getpid(), signal.SIGTERM)
        assert told == [signal.SIGTERM]
        with preemption.preemption() as interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupted(1)
        assert told == [signal.SIGTERM]
        with pytest.raises(MemoryError), preemption.preemption():
            os.kill(os.getpid(), signal.SIGTERM)
            raise MemoryError  # in the step that it came in
        assert told == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_sigterm_is_what_it_was():
    before = signal.getsignal(signal.SIGTERM)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", None)  # which Python allows in the main thread only
        assert pool.submit(lambda: preemption.preemption().__enter__()(1)).result() is False
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_metrics_of_other_processes_are_not_written(tmp_path):
    with metrics_log.Metrics(tmp_path / "none", enabled=False) as log:
        log.write(1, {"loss": 1.0})
        log.truncate(0)
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def evaluated_often(tmp_path_factory):
    """What a run came to that is evaluated at every other step, and its scores by step."""
    folder = tmp_path_factory.mktemp("often")
    with jax.numpy_dtype_promotion("standard"):
        _, outcome = fit(folder, evaluate_every=2, target=0.5)
    rows = metrics_log.read_metrics(folder / "metrics.jsonl")
    return outcome, {row["step"]: row["accuracy"] for row in rows if "accuracy" in row}


def test_the_best_evaluation_is_remembered(evaluated_often):
    outcome, scores = evaluated_often
    assert len(scores) == 10
    assert outcome.best_step == max(scores, key=scores.__getitem__)
    assert outcome.metrics_best["accuracy"] == max(scores.values())
    assert outcome.metrics_last["accuracy"] == scores[20]


@pytest.mark.parametrize("best_from", [12, 21])
def test_the_best_is_one_of_those_that_may_be(tmp_path, best_from):
    """Scores only fall, so the first that counts is the best."""
    falling = iter(range(100, 0, -1))
    _, outcome = fit(
        tmp_path, evaluate_every=4, scores=lambda _: float(next(falling)), best_from=best_from
    )
    assert outcome.best_step == {12: 12, 21: 20}[best_from]
    with checkpoint.Checkpoints(tmp_path / "checkpoints", best=("accuracy", "max")) as saved:
        assert saved.best_step() == outcome.best_step


def test_a_run_that_diverges_stops_and_keeps_its_last_good_checkpoint(tmp_path):
    _, outcome = fit(tmp_path, poison=11)
    assert outcome.diverged
    assert outcome.steps == 12  # the next step at which the loss is read
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
        assert saved.steps()[-1] == 10
    rows = metrics_log.read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(rows[-1]["loss"])
    assert rows[-1]["step"] == 12
    assert outcome.seconds > 0


def test_a_run_that_diverges_before_it_ever_reports_took_its_time(tmp_path):
    _, outcome = fit(tmp_path, poison=1)
    assert (outcome.diverged, outcome.steps) == (True, 3)
    assert outcome.seconds > 0


@pytest.mark.parametrize(("broken", "kept"), [(20, [14, 15]), (14, [7, 10]), (5, [])])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, broken, kept):
    """The loss of that step, which is of the weights before it, is still finite."""
    tx = optax.sgd(lambda count: jnp.where(count == broken - 1, jnp.inf, 1e-2))
    for _ in range(2):  # again, from the checkpoints, to the same end
        _, outcome = fit(tmp_path, tx=tx)
        assert (outcome.diverged, outcome.steps) == (True, broken)
        with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
            assert saved.steps()[-2:] == kept
    rows = metrics_log.read_metrics(tmp_path / "metrics.jsonl")
    assert rows[-1]["step"] == broken and math.isfinite(rows[-1]["loss"])


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_not_finite_ends_the_run(tmp_path, score):
    found = iter([0.5, score])
    _, outcome = fit(tmp_path, scores=lambda _: next(found))
    assert (outcome.diverged, outcome.steps, outcome.best_step) == (True, 14, 7)
    assert outcome.metrics_best == {"accuracy": 0.5}
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
        assert saved.steps() == [7, 10]


def test_who_catches_an_error_knows_how_far_the_run_came(tmp_path):
    outcome = Outcome()
    with pytest.raises(Killed):
        fit(tmp_path, killed_at=13, outcome=outcome)
    assert (outcome.steps, outcome.best_step) == (12, 7)
    assert outcome.metrics_last == outcome.metrics_best != {}
    assert outcome.seconds > 0


@pytest.mark.parametrize("steps, evaluations", [(20, 4), (20, 20), (17, 5), (7, 7), (100, 1)])
def test_evaluations_are_spread_evenly(steps, evaluations):
    loop = Loop(steps, evaluations=evaluations)
    found = [step for step in range(1, steps + 1) if loop.evaluates(step)]
    assert len(found) == evaluations and found[-1] == steps
    gaps = np.diff([0, *found])
    assert gaps.max() - gaps.min() <= 1


def test_an_evaluation_at_the_end_of_every_epoch():
    loop = Loop(steps=3 * 11, evaluations=3)
    assert [step for step in range(1, 34) if loop.evaluates(step)] == [11, 22, 33]


@pytest.mark.parametrize("target", [-1.0, 0.5, 2.0])
def test_the_step_at_which_a_score_is_reached_first(tmp_path, target, evaluated_often):
    if target == 0.5:
        outcome, scores = evaluated_often
    else:
        _, outcome = fit(tmp_path, target=target)
        scores = {each["step"]: each["score"] for each in outcome.evaluations}
    reached = [step for step, score in scores.items() if score >= target]
    assert len(reached) < len(scores) or target < 0
    assert outcome.target_step == (reached[0] if reached else None)
    assert (outcome.target_seconds is None) == (not reached)
    if reached:
        assert 0 < outcome.target_seconds <= outcome.seconds


def test_every_evaluation_with_the_seconds_until_then(tmp_path, evaluated_often):
    """Of a checkpoint from before they were kept, some would be missing: then there are none."""
    outcome, scores = evaluated_often
    assert [(each["step"], each["score"]) for each in outcome.evaluations] == [*scores.items()]
    seconds = [each["seconds"] for each in outcome.evaluations]
    assert seconds == sorted(seconds) and seconds[0] > 0 and seconds[-1] == outcome.seconds

    with pytest.raises(Killed):
        fit(tmp_path, killed_at=12)
    true_restore = checkpoint.Checkpoints.restore

    def restore(self, state):
        state, meta, step = true_restore(self, state)
        meta["outcome"].pop("evaluations")
        return state, meta, step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "restore", restore)
        _, outcome = fit(tmp_path)
    assert outcome.evaluations is None and outcome.steps == 20


def test_a_target_that_is_to_be_undercut():
    loop = Loop(10, metric="eval_loss", mode="min", target=0.3)
    assert [loop.reached({"eval_loss": x}) for x in (0.4, 0.3, 0.2)] == [False, True, True]
