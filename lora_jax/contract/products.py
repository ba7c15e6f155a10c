"""Clauses about products with one matrix: what they equal, and in which dtypes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.contract import keys, toy_matrices
from lora_jax.contract.clause import (
    by_numpy,
    clause,
    require,
    require_close,
    require_same_form,
)
from lora_jax.contract.toy_matrices import array, noisy, normal, quick_factors_of
from lora_jax.variant import Base, Factors, Variant, wide


@clause
def products_equal_the_weight(variant: Variant) -> None:
    """`dot`, `dot_t` and `take` are products with, and rows of, `weight`."""
    outers = {"io": ((), (3,), (2, 3), (0,)), "ioo": ((),), "iio": ((3,),)}
    uses = {}
    for roles, base in toy_matrices.bases(variant).items():
        for outer in outers.get(roles, ((2, 3),)):
            uses[f"for {roles}, {list(outer)}"] = base, inputs_of(base, outer)
    require_products(variant, uses)


@clause
def plain_lora_equals_the_weight(variant: Variant) -> None:
    """`as_lora`, where a method has it, gives A and B with W + A^T B = `weight`."""
    base = toy_matrices.base(variant)
    weight, plain = _weight_and_plain_lora(variant, base, quick_factors_of(variant, base))
    if plain is not None:
        a, b = plain
        require_close("W + A^T B of as_lora", np.asarray(base.value) + a.T @ b, weight)


@functools.partial(by_numpy, static_argnums=0)
def _weight_and_plain_lora(
    variant: Variant, base: Base, factors: Factors
) -> tuple[Array, tuple[Array, Array] | None]:
    return variant.weight(base, factors), variant.as_lora(base, factors)


@clause
def gradients_equal_those_through_the_weight(variant: Variant) -> None:
    """`dot`, `dot_t` and `take` have the gradients of products with `weight`."""
    base = toy_matrices.base(variant)
    x, z, rows = inputs = jax.device_get(inputs_of(base, (6,)))
    cotangents = c, c_t, c_rows = [
        np.asarray(normal((6, base.shape[axis]), [11, number]))
        for number, axis in enumerate((1, 0, 1))
    ]
    taken = np.zeros(base.shape)
    np.add.at(taken, rows, c_rows)
    through = [x.T @ c, np.transpose(c_t) @ z, taken]
    factors = quick_factors_of(variant, base)
    results = _gradients_of_uses(variant, base, factors, inputs, cotangents, through)
    for name, (got, wanted) in results.items():
        require_close(f"the gradient of {name}", got, wanted)


@functools.partial(by_numpy, static_argnums=0)
def _gradients_of_uses(
    variant: Variant, base: Base, factors: Factors, inputs: Any, cotangents: Any, through: Any
) -> dict[str, tuple[Any, Any]]:
    """For each use, its gradient and the one through the weight, from the weight's cotangents."""
    by_weight = pull_back(variant, base, factors)
    calls = {"dot": variant.dot, "dot_t": variant.dot_t, "take": variant.take}
    results = {}
    for (name, call), x, y, w in zip(calls.items(), inputs, cotangents, through, strict=True):

        def use(trainable: Any, call: Any = call, x: Any = x) -> Array:
            return call(x, base, Factors(trainable, factors.constants))

        results[name] = jax.vjp(use, factors.trainable)[1](y)[0], by_weight(w)
    return results


@clause
def narrow_inputs_give_narrow_outputs(variant: Variant) -> None:
    """A bfloat16 or float32 matrix and input give that dtype, as exact as with merging."""
    for dtype in (jnp.bfloat16, jnp.float32):
        base = toy_matrices.base(variant, dtype)
        x, z, rows = inputs_of(base, (3,), dtype)
        ((weight, *products),) = _products(
            variant, quick_factors_of(variant, base), [(base, (x, z, rows))]
        )
        require(
            weight.dtype == wide(dtype),
            f"weight of a {jnp.dtype(dtype)} matrix is {weight.dtype}, expected its factors' dtype",
        )
        exact = np.asarray(weight, np.float64)
        operands = x, z, np.eye(len(exact))[np.asarray(rows)]
        for what, got, operand, matrix in zip(
            ("dot", "dot_t", "take"), products, operands, (exact, exact.T, exact), strict=True
        ):
            require(got.dtype == dtype, f"{what} of {jnp.dtype(dtype)} gives {got.dtype}")
            operand = np.asarray(operand, np.float64)
            units = float(jnp.finfo(dtype).eps) * np.max(np.abs(operand) @ np.abs(matrix))
            error = np.max(np.abs(np.asarray(got, np.float64) - operand @ matrix)) / units
            require(
                error <= 8, f"{what} of {jnp.dtype(dtype)} is {error:.2g} units off (at most 8)"
            )


@clause
def products_accumulate_as_asked(variant: Variant) -> None:
    """A product that is asked to accumulate in float32 gives float32, also from bfloat16."""
    narrow, wider = jnp.bfloat16, jnp.dtype(jnp.float32)
    base = toy_matrices.base(variant, narrow)
    asking = dataclasses.replace(base, accumulate=wider)
    factors, inputs = quick_factors_of(variant, base), inputs_of(base, (2, 3), narrow)
    results = _products(variant, factors, [(asking, inputs), (base, inputs)])
    for what, got, plain in list(zip(("weight", "dot", "dot_t"), *results, strict=False))[1:]:
        require(got.dtype == wider, f"{what} accumulated in float32 gives {got.dtype}")
        got, plain = np.asarray(got), np.asarray(plain, np.float32)
        size = np.abs(plain).max()
        require_close(f"{what} accumulated in float32", got / size, plain / size, 0.1)


Layouts = dict[str, tuple[Base, tuple[Array, Array, Array]]]
"""Layouts of a matrix, by their description, with inputs of `dot`, of `dot_t` and of `take`."""


def require_products(variant: Variant, layouts: Layouts) -> None:
    """Compare `dot`, `dot_t` and `take` with `weight`."""
    bases = [base for base, _ in layouts.values()]
    factors = quick_factors_of(variant, bases[0])
    results = _products(variant, factors, list(layouts.values()))
    for (of, (base, (x, z, rows))), (weight, *products) in zip(
        layouts.items(), results, strict=True
    ):
        require_same_form("weight", weight, jax.ShapeDtypeStruct(base.shape, base.dtype))
        require_close(f"weight {of}", weight, results[0][0])
        weight = np.asarray(weight)
        references = np.asarray(x) @ weight, np.asarray(z) @ weight.T, weight[np.asarray(rows)]
        for what, got, reference in zip(
            ("dot", "dot_t", "take"), products, references, strict=True
        ):
            require_close(f"{what} {of}", got, reference)


@functools.partial(by_numpy, static_argnums=0)
def _products(variant: Variant, factors: Factors, uses: Any) -> list[tuple[Array, ...]]:
    """The weight and the products with it, in each layout of one matrix."""
    results = []
    for base, (x, z, rows) in uses:
        weight, dot = variant.weight(base, factors), variant.dot(x, base, factors)
        dot_t, taken = variant.dot_t(z, base, factors), variant.take(rows, base, factors)
        results.append((weight, dot, dot_t, taken))
    return results


def inputs_of(
    base: Base, outer: tuple[int, ...], dtype: Any = jnp.float64
) -> tuple[Array, Array, Array]:
    """Inputs of `dot`, of `dot_t` and of `take`."""
    x, z = (normal((*outer, size), size, dtype) for size in base.shape)
    rows = np.random.default_rng(9).integers(0, base.shape[0], outer)
    return x, z, array(rows, np.int32)


def calls_of(base: Base, factors: Factors) -> dict[str, Callable[[Variant], Any]]:
    """Everything that a variant computes with one matrix."""
    x, z, rows = inputs_of(base, (2, 3))
    key, gradients = keys.key(10), noisy(factors.trainable, 12)
    return {
        "weight": lambda variant: variant.weight(base, factors),
        "dot": lambda variant: variant.dot(x, base, factors),
        "dot with dropout": lambda variant: variant.dot(x, base, factors, dropout_key=key),
        "dot_t": lambda variant: variant.dot_t(z, base, factors),
        "take": lambda variant: variant.take(rows, base, factors),
        "precondition": lambda variant: variant.precondition(gradients, factors),
        "learning_rates": lambda variant: variant.learning_rates({"w": factors.constants}),
    }


def pull_back(variant: Variant, base: Base, factors: Factors) -> Callable[[Array], Any]:
    """The gradient of the trainables, given the weight's."""

    def weight(trainable: Any) -> Array:
        return variant.weight(base, Factors(trainable, factors.constants))

    _, pull_back = jax.vjp(weight, factors.trainable)
    return lambda cotangent: pull_back(cotangent)[0]
