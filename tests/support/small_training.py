"""A model of two small matrices, its training step, and runs of 20 steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from killed import Killed

import lora_jax as lj
import variants
from lora_jax.records import metrics_log
from lora_jax.training import checkpoint, loop as training_loop, trial_program
from lora_jax.training.loop_settings import Loop
from lora_jax.training.outcome import Outcome
from lora_jax.training.saved_trials import SavedTrials
from lora_jax.training.step import TrainState, cross_entropy, make_train_step


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
    chosen="last",
    **loop,
):
    """A run of 20 steps: the state `chosen`, and the outcome.

    `scores(accuracy)` stands in for what an evaluation says.
    """
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
        checkpoint.Checkpoints(folder / "checkpoints") as checkpoints,
        metrics_log.Metrics(folder) as log,
    ):
        settings = Loop(20, 3, evaluate_every, checkpoint_every, **loop)
        saved = SavedTrials(checkpoints, {}, keep_best=True)
        (state,) = training_loop.fit(
            trial_program.alone(make(adapted, tx), frozen),
            [TrainState.create(adapted, tx, own(trainable), frozen, jax.random.key(1))],
            [training_loop.TrialRun(settings, source, log, outcome)],
            evaluate=lambda _, trainable: evaluate(trainable),
            saved=saved,
            interrupted=interrupted,
            audit=None if audit is None else lambda states: audit(*states),
        )
        (best,) = saved.best([state], [outcome])
    return best if chosen == "best" else state, outcome
