"""Clauses about combinations: dropout, starts, ratios of rates, preconditioners, quantisation."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from lora_jax.contract import toys
from lora_jax.contract.clause import (
    by_numpy,
    clause,
    quick_jit,
    require,
    require_close,
    require_identical,
    require_same_form,
)
from lora_jax.contract.matrix import inputs_of, pull_back, require_products
from lora_jax.contract.toys import altered, decoder, factors_of, hashed_key, init, noisy, normal
from lora_jax.methods import initialization, preconditioning
from lora_jax.partition import flatten
from lora_jax.quantization.quantize import NF4, Int8, quantized
from lora_jax.transform.adapt import Adapted, adapt
from lora_jax.transform.placement import PyTree, Trainable
from lora_jax.variant import Base, Factors, Variant

RATIO = 8.0
KEYS = 40
"""Enough keys that each input is dropped by some and kept by others."""


@clause
def dropout_spares_the_base(variant: Variant) -> None:
    """Dropout acts with a key only, on the adapter's input only, and leaves the mean as it is.

    An input is dropped half of the time, and doubled otherwise. So the mean of the two is exact,
    and so is the mean of their gradients.
    """
    if not _has(variant, "dropout"):
        return
    dropping = dataclasses.replace(variant, dropout=0.5)
    base = toys.base(variant)
    x = normal((3, base.shape[0]), 14)
    random, halves = (normal(base.shape, 19), np.zeros((KEYS, *base.shape)))

    def dropped(halves: np.ndarray) -> Any:
        return _dropped(dropping, base, x, random, halves, 15)

    start, plain, weight, rows, through_weight, _ = jax.device_get(dropped(halves))
    if not dropping.differs_at_init:
        require_close("dropout at the start", start, np.asarray(x) @ base.value, 1e-12)
    require_close("dot without a key", plain, np.asarray(x) @ weight)
    distance = np.abs(rows - rows[:1]).sum(axis=-1)
    require(np.all(distance.max(axis=0) > 0), "another dropout key gives the same")
    inputs = np.arange(len(weight))
    both = np.stack([0 * inputs, distance.argmax(axis=0)]), inputs  # keys that drop and keep each
    require_close("the mean over dropout", rows[both].mean(axis=0), weight)
    np.add.at(halves, both, np.asarray(random) / 2)
    require_close("the gradient's mean over dropout", dropped(halves)[-1], through_weight)


@functools.partial(by_numpy, static_argnums=0)
def _dropped(
    variant: Variant, base: Base, x: Array, random: Array, halves: Array, seed: Array
) -> tuple[Any, ...]:
    """Products with and without dropout, and the gradients of some combination of each."""
    several = jax.random.split(hashed_key(seed), KEYS)
    start = variant.dot(x, base, init(variant, seed, base), dropout_key=several[0])
    trainable, constants = factors = factors_of(variant, base)
    weight, through_weight = jax.vjp(
        lambda t: variant.weight(base, Factors(t, constants)), trainable
    )

    def met(trainable: Any) -> Array:
        """The row of the weight that each input meets, dropped or kept: (keys, in, out)."""
        each, inputs = Factors(trainable, constants), jnp.eye(len(weight))
        return jax.vmap(lambda key: variant.dot(inputs, base, each, dropout_key=key))(several)

    rows, through_rows = jax.vjp(met, trainable)
    plain = variant.dot(x, base, factors)
    return start, plain, weight, rows, through_weight(random), through_rows(halves)


@clause
def starts_from_any_initialization(variant: Variant) -> None:
    """Every initialisation starts at the base, and its products equal the weight.

    One that differs from the base, as the variant says, has its products compared alone.
    """
    if not _has(variant, "initialization"):
        return
    base = toys.base(variant)
    x, z = (normal((3, size), 17) for size in base.shape)
    names = (*initialization.DRAWN, *initialization.SUBTRACTED, "pissa_niter_2")
    others = tuple(dataclasses.replace(variant, initialization=name) for name in names)
    results = jax.device_get(_begun(others, base, x, z, 18))
    for name, each, (start, weight, dot, dot_t) in zip(names, others, results, strict=True):
        if not each.differs_at_init:
            require_close(f"the start from '{name}'", start, base.value)
        require_close(f"dot, begun from '{name}'", dot, np.asarray(x) @ weight)
        require_close(f"dot_t, begun from '{name}'", dot_t, np.asarray(z) @ np.transpose(weight))


@functools.partial(by_numpy, static_argnums=0)
def _begun(
    variants: tuple[Variant, ...], base: Base, x: Array, z: Array, seed: Array
) -> list[tuple[Array, ...]]:
    """For each variant, the weight at the start, another weight, and the products with that."""
    results = []
    for each in variants:
        start = init(each, seed, base)
        factors = Factors(noisy(start.trainable), start.constants)
        weight, dot = each.weight(base, factors), each.dot(x, base, factors)
        results.append((each.weight(base, start), weight, dot, each.dot_t(z, base, factors)))
    return results


@clause
def learns_at_its_ratio(variant: Variant) -> None:
    """With a learning-rate ratio, the factors that it applies to move that many times as far."""
    if not _has(variant, "learning_rate_ratio"):
        return
    both = (dataclasses.replace(variant, learning_rate_ratio=ratio) for ratio in (1.0, RATIO))
    adapted = tuple(adapt(decoder, each, "mix/kernel", "head_bias") for each in both)
    toy = toys.toy(variant)
    plain, fast = jax.device_get(_moves(adapted, toy.params, toy.ids, 20))
    moves = [
        {**each["adapters"]["mix/kernel"], **each.get("shared", {}).get("0", {})}
        for each in (plain, fast)
    ]
    ratios = {name: float(np.unique(moves[1][name] / x).item()) for name, x in moves[0].items()}
    require(
        set(ratios.values()) in ({RATIO}, {1.0, RATIO}), f"at ratio {RATIO} factors move {ratios}"
    )
    require_identical("what trains in full, at a ratio", fast["params"], plain["params"])


@functools.partial(quick_jit, static_argnums=0)
def _moves(
    several: tuple[Adapted, ...], params: PyTree, ids: Array, seed: Array
) -> list[Trainable]:
    """The updates that each makes from a gradient of ones at learning rate 1."""
    moves = []
    for adapted in several:
        trainable, frozen = toys.begin(adapted, hashed_key(seed), params, ids)
        tx = adapted.optimizer(optax.sgd(1.0), frozen)
        grads = jax.tree.map(jnp.ones_like, trainable)
        moves.append(tx.update(grads, tx.init(trainable), trainable)[0])
    return moves


@clause
def goes_down_preconditioned(variant: Variant) -> None:
    """With every preconditioner that it takes, the optimiser gets another direction, also down."""
    names = preconditioning.PRECONDITIONERS if _has(variant, "preconditioner") else ()
    others = (altered(variant, preconditioner=name) for name in names)
    several = (variant, *(each for each in others if each is not None))
    base = toys.base(variant)
    results = _directions(several, base, normal(base.shape, 22))
    for each, (gradients, changed) in zip(several, results, strict=True):
        require_same_form("precondition", changed, gradients)
        differs = any(np.any(changed[name] != gradients[name]) for name in gradients)
        said = f"the preconditioner '{getattr(each, 'preconditioner', '')}' gives"
        require(differs == each.preconditions, f"{said} other gradients: {differs}")
        slope = sum(float(np.sum(changed[name] * gradients[name])) for name in gradients)
        require(slope > 0, f"against what {said}, the loss rises by {-slope:.2g}")


@functools.partial(by_numpy, static_argnums=0)
def _directions(variants: tuple[Variant, ...], base: Base, cotangent: Array) -> list[Any]:
    """The gradients of each variant's factors, and what the optimiser gets for them."""
    results = []
    for each in variants:
        factors = factors_of(each, base)
        gradients = pull_back(each, base, factors)(cotangent)
        results.append((gradients, each.precondition(gradients, factors)))
    return results


@clause
def acts_on_quantised_weights(variant: Variant) -> None:
    """On quantised weights it computes the same as on the dequantised ones, gradients too."""
    dense = toys.base(variant)
    base = by_numpy(functools.partial(quantized, Int8()))(dense.value)
    base = dataclasses.replace(base, seen=dense.seen)
    require_products(variant, {"of an int8 matrix": (base, inputs_of(base, (2, 3)))})
    toy = toys.toy(variant, targets=toys.SOME, quantize=NF4())
    stood_for = by_numpy(toy.adapted.disable)(toy.trainable, toy.frozen)
    if not variant.differs_at_init:
        wanted = toys.output_of(stood_for, toy.ids)
        require_close("the output at the start", toy.gradient(toy.trainable)[0], wanted)
    plain, leaves = toys.toy(variant, targets=toys.SOME), flatten(stood_for)[0]
    stored = {path: leaves[path] for path in plain.frozen.base}
    frozen = dataclasses.replace(toy.frozen, base=stored, spec=plain.frozen.spec)
    wanted = dataclasses.replace(plain, frozen=frozen).gradient(toy.moved)
    got = toy.gradient(toy.moved)
    require_close("apply", got[0], wanted[0])
    require_close("the gradient of apply", got[1], wanted[1])


def _has(variant: Variant, setting: str) -> bool:
    return setting in {field.name for field in dataclasses.fields(variant)}


OF_COMPOSITIONS = (
    dropout_spares_the_base,
    starts_from_any_initialization,
    learns_at_its_ratio,
    goes_down_preconditioned,
    acts_on_quantised_weights,
)
