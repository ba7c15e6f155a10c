"""A training step of this project's, for `experiments.benchmarks.contender`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lora_jax as lj
import variants
from experiments.benchmarks import cases
from experiments.benchmarks.cases import Case
from lora_jax.models.published import encoders
from lora_jax.models.published.location import locate
from lora_jax.training import optim
from lora_jax.training.step import TrainState, cross_entropy, make_train_step

TARGETS = {
    "query, value": "(query|value)/kernel",
    "all six": "layers/.*(query|key|value|output|up|down)/kernel",
}


def make(case: Case, batch: dict[str, np.ndarray]) -> Callable[[], float]:
    """A function that takes a step and returns its loss."""
    key = jax.random.key(0)
    loaded = encoders.load_classifier(
        locate("minilm"), num_labels=cases.CLASSES, pool="cls", key=key
    )
    forward, params = lj.from_nnx(loaded.model)
    if case.method == "full":
        adapted = lj.adapt(forward, None, {"all-linear": variants.make("full")}, [".*"])
    else:
        budget = {**cases.BUDGET, "total_steps": cases.STEPS} if case.method == "adalora" else {}
        variant = variants.make(case.method, rank=cases.RANK, **budget)
        adapted = lj.adapt(forward, None, {TARGETS[case.targets]: variant}, ["classifier/.*"])
    inputs = [batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")]
    trainable, frozen = adapted.init(key, params, *inputs)

    def predict(trainable: Any, frozen: lj.Frozen, batch: Any, rng: Any) -> jax.Array:
        given = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        return adapted.apply(trainable, frozen, *given)

    tx = optim.adamw(1e-3, clip=None, weight_decay=0.01, b1=0.9, b2=0.999, eps=1e-8)
    step = make_train_step(adapted, tx, predict, cross_entropy, clip=1.0)
    state = TrainState.create(adapted, tx, jax.tree.map(jnp.copy, trainable), frozen, key)

    def take() -> float:
        nonlocal state
        state, metrics = step(state, frozen, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return take
