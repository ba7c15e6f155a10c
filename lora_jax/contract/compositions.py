"""Clauses about combinations: dropout, initialisations, learning-rate ratios, quantisation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from lora_jax import initialization
from lora_jax.contract import toys
from lora_jax.contract.clause import (
    clause,
    compiled,
    require,
    require_close,
    require_identical,
)
from lora_jax.contract.matrix import require_products
from lora_jax.contract.toys import decoder, score
from lora_jax.frozen import Trainable
from lora_jax.quantize import NF4, Int8, quantized
from lora_jax.variant import Factors, Variant

RATIO = 8.0


@clause
def dropout_spares_the_base(variant: Variant) -> None:
    """Dropout acts with a key only, on the adapter's input only, and leaves the mean as it is.

    Half of the time an input is dropped, else it is doubled: the mean of the two is exact, and so
    is that of their gradients.
    """
    if not _has(variant, "dropout"):
        return
    dropping = dataclasses.replace(variant, dropout=0.5)
    base = toys.base(variant)
    x = toys.normal((3, base.shape[0]), 14)
    keys = jax.random.split(jax.random.key(15), 40)
    if not variant.differs_at_init:
        start = toys.init(dropping, 16, base)
        got = dropping.dot(x, base, start, dropout_key=keys[0])
        require_close("dropout at the start", got, base.dot(x), 1e-12)
    trainable, constants = factors = toys.factors_of(dropping, base)
    weight, through_weight = jax.vjp(
        lambda t: dropping.weight(base, Factors(t, constants)), trainable
    )
    require_close("dot without a key", dropping.dot(x, base, factors), x @ weight)

    def met(trainable: Any) -> Array:
        """The row of the weight that each input meets, dropped or kept: (keys, in, out)."""
        each, inputs = Factors(trainable, constants), jnp.eye(len(weight))
        return jax.vmap(lambda key: dropping.dot(inputs, base, each, dropout_key=key))(keys)

    rows, through_rows = jax.vjp(met, trainable)
    rows = np.asarray(rows)
    distance = np.abs(rows - rows[:1]).sum(axis=-1)
    require(np.all(distance.max(axis=0) > 0), "another dropout key gives the same")
    inputs = np.arange(len(weight))
    both = np.stack([0 * inputs, distance.argmax(axis=0)]), inputs  # keys that drop and keep each
    require_close("the mean over dropout", rows[both].mean(axis=0), weight)
    random, halves = toys.normal(weight.shape, 19), np.zeros_like(rows)
    np.add.at(halves, both, random / 2)
    got = through_rows(jnp.asarray(halves))
    require_close("the gradient's mean over dropout", got, through_weight(random))


@clause
def starts_from_any_initialization(variant: Variant) -> None:
    """Every initialisation starts at the base, and its products equal the weight."""
    if not _has(variant, "initialization") or variant.differs_at_init:
        return
    base = toys.base(variant)
    x, z = (toys.normal((3, size), 17) for size in base.shape)
    for name in (*initialization.DRAWN, *initialization.TAKEN, "pissa_niter_2"):
        other = dataclasses.replace(variant, initialization=name)
        start = toys.init(other, 18, base)
        require_close(f"the start from '{name}'", other.weight(base, start), base.dense())
        factors = toys.factors_of(other, base)
        weight = other.weight(base, factors)
        require_close(f"dot, begun from '{name}'", other.dot(x, base, factors), x @ weight)
        require_close(f"dot_t, begun from '{name}'", other.dot_t(z, base, factors), z @ weight.T)


@clause
def learns_at_its_ratio(variant: Variant) -> None:
    """With a learning-rate ratio, the factors that it is for move so much further."""
    if not _has(variant, "learning_rate_ratio"):
        return
    moves = []
    for ratio in (1.0, RATIO):
        toy = toys.toy(dataclasses.replace(variant, learning_rate_ratio=ratio))
        tx = toy.adapted.optimizer(optax.sgd(1.0), toy.frozen)
        grads = jax.tree.map(jnp.ones_like, toy.trainable)
        moves.append(tx.update(grads, tx.init(toy.trainable), toy.trainable)[0])
    plain, fast = moves
    ratios = {
        name: float(np.unique(fast["adapters"]["mix/kernel"][name] / each).item())
        for name, each in plain["adapters"]["mix/kernel"].items()
    }
    require(
        set(ratios.values()) in ({RATIO}, {1.0, RATIO}), f"at ratio {RATIO} factors move {ratios}"
    )
    require_identical("what trains in full, at a ratio", fast["params"], plain["params"])


@clause
def acts_on_quantised_weights(variant: Variant) -> None:
    """On quantised weights it computes what it does on those that they stand for, gradients too."""
    base = quantized(Int8(), toys.base(variant).value)
    require_products(variant, base, "of an int8 matrix", ((2, 3),))
    toy = toys.toy(variant, quantize=NF4())
    if not variant.differs_at_init:
        wanted = _decoder(toy.adapted.disable(toy.trainable, toy.frozen), toy.ids)
        require_close("the output at the start", toy.output(toy.trainable), wanted)
    merged = toy.adapted.merge(toy.moved, toy.frozen)
    require_close("apply", toy.output(toy.moved), _decoder(merged, toy.ids))

    @jax.value_and_grad
    def through_merge(trainable: Trainable) -> Array:
        return score(decoder(toy.adapted.merge(trainable, toy.frozen), toy.ids))

    wanted = compiled(through_merge)(toy.moved)
    require_close("the gradient of apply", toy.gradient(toy.moved), wanted)


_decoder = compiled(decoder)


def _has(variant: Variant, setting: str) -> bool:
    return setting in {field.name for field in dataclasses.fields(variant)}


OF_COMPOSITIONS = (
    dropout_spares_the_base,
    starts_from_any_initialization,
    learns_at_its_ratio,
    acts_on_quantised_weights,
)
