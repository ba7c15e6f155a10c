"""Clauses about one matrix: what a variant's own functions must agree on."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.contract import toys
from lora_jax.contract.clause import (
    clause,
    draws_random_numbers,
    require,
    require_close,
    require_identical,
    require_same_form,
)
from lora_jax.variant import Base, Factors, Variant, wide


@clause
def signatures_are_those_of_the_contract(variant: Variant) -> None:
    """Methods take what `Variant`'s take, by the same names in the same order."""
    for name, method in vars(Variant).items():
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        wanted, got = (
            list(inspect.signature(getattr(kind, name)).parameters)
            for kind in (Variant, type(variant))
        )
        require(got == wanted, f"{name}({', '.join(got)}), expected {name}({', '.join(wanted)})")


@clause
def settings_are_static(variant: Variant) -> None:
    """A variant is hashable, and one with equal settings is equal: they share compiled programs."""
    twin = dataclasses.replace(variant)
    require(twin == variant, "a variant with the same settings is not equal to it")
    require(hash(twin) == hash(variant), "a variant with the same settings has another hash")
    before = repr(variant)
    base = toys.base(variant)
    variant.dot(jnp.ones(base.shape[:1]), base, toys.factors_of(variant, base))
    require(repr(variant) == before, f"use changed the settings to {variant}")


@clause
def init_is_a_function_of_its_key(variant: Variant) -> None:
    """The same key gives the same factors, from any instance, in any order, stacked or alone."""
    one, two = jax.random.split(jax.random.key(6))
    base = toys.base(variant)
    first = variant.init(one, base)
    other = variant.init(two, base)
    variant.init(two, toys.bases(variant)["oi"])
    require_identical("init with the same key", variant.init(one, base), first)
    twin = dataclasses.replace(variant)
    require_identical("init of an equal variant", twin.init(one, base), first)
    require_same_form("init under eval_shape", jax.eval_shape(variant.init, one, base), first)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), base, base)
    both = jax.vmap(variant.init)(jnp.stack([one, two]), stacked)
    require_close("init under vmap", jax.tree.map(lambda leaf: leaf[0], both), first)

    if draws_random_numbers(variant.init, one, base):
        same = [(a == b).all() for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True)]
        require(not all(same), "init draws random numbers, and another key gives the same")


@clause
def factors_are_wide(variant: Variant) -> None:
    """Trainables have the base's dtype, or float32 where that is narrower."""
    for narrow in (jnp.bfloat16, jnp.float32, jnp.float64):
        factors = toys.init(variant, 0, toys.base(variant, narrow))
        wanted = wide(narrow)
        for name, factor in factors.trainable.items():
            found = f"trainable '{name}' of a {jnp.dtype(narrow)} matrix is {factor.dtype}"
            require(factor.dtype == wanted, f"{found}, expected {wanted}")
        both = sorted(factors.trainable.keys() & factors.constants.keys())
        require(not both, f"{both} are both trainable and constant")


@clause
def starts_at_the_base(variant: Variant) -> None:
    """The effective weight is the base's at the start, unless the variant says why it is not."""
    if variant.differs_at_init:
        return
    for roles, base in toys.bases(variant).items():
        weight = variant.weight(base, toys.init(variant, 7, base))
        require_close(f"the weight at the start ({roles})", weight, base.dense(), 1e-12)


@clause
def count_is_exact(variant: Variant) -> None:
    """`count` is how many trainable numbers the weight depends on; none is there for nothing."""
    for shape in toys.shapes(variant):
        base = Base(toys.normal(shape, 8), "io")
        trainable, constants = toys.factors_of(variant, base)
        (grads,) = _gradients(
            lambda t, base=base, c=constants: variant.weight(base, Factors(t, c)), trainable
        )
        for name, grad in grads.items():
            require(jnp.any(grad != 0), f"the weight does not depend on the trainable '{name}'")
        used = sum(int(jnp.count_nonzero(grad)) for grad in grads.values())
        sizes = " + ".join(f"{name} {list(each.shape)}" for name, each in grads.items())
        said = f"count({shape}) is {variant.count(shape)}"
        require(variant.count(shape) == used, f"{said}, the weight depends on {used} of {sizes}")


@clause
def products_equal_the_weight(variant: Variant) -> None:
    """`dot`, `dot_t` and `take` are products with, and rows of, `weight`."""
    for roles, base in toys.bases(variant).items():
        require_products(variant, base, f"for {roles}", ((), (3,), (2, 3), (0,)))


@clause
def gradients_equal_those_through_the_weight(variant: Variant) -> None:
    """`dot`, `dot_t` and `take` have the gradients of products with `weight`."""
    base = toys.base(variant)
    trainable, constants = toys.factors_of(variant, base)
    x, z, rows = _inputs(base, (2, 3))

    def weight(factors: Factors) -> Array:
        return variant.weight(base, factors)

    def compare(name: str, got: Callable[..., Array], wanted: Callable[..., Array], x: Any) -> None:
        one, other = (
            _gradients(lambda t, *args, f=each: f(Factors(t, constants), *args), trainable, *x)
            for each in (got, wanted)
        )
        require_close(f"the gradient of {name}", one, other)

    compare("dot", lambda f, x: variant.dot(x, base, f), lambda f, x: x @ weight(f), [x])
    compare("dot_t", lambda f, z: variant.dot_t(z, base, f), lambda f, z: z @ weight(f).T, [z])
    compare("take", lambda f: variant.take(rows, base, f), lambda f: weight(f)[rows], [])


@clause
def numbers_are_read_from_constants(variant: Variant) -> None:
    """Settings that are real numbers act through the constants of `init` only: a sweep traces them.

    So a variant that differs in such a setting, given the same factors, computes the same.
    """
    base = toys.base(variant)
    factors = toys.factors_of(variant, base)
    for other, name in toys.variations(variant):
        for what, call in _calls(base, factors).items():
            require_close(
                f"{what} with another '{name}' and the same factors", call(other), call(variant)
            )
        got, wanted = (each.learning_rates({"w": factors.constants}) for each in (other, variant))
        require_close(f"learning_rates with another '{name}' and the same constants", got, wanted)


@clause
def calls_are_pure(variant: Variant) -> None:
    """Calling twice gives the same bits, and changes no argument."""
    base = toys.base(variant)
    factors = toys.factors_of(variant, base)
    copy = jax.tree.map(jnp.copy, factors)
    for what, call in _calls(base, factors).items():
        require_identical(f"{what}, called again", call(variant), call(variant))
        require_identical(f"its argument `factors` after {what}", factors, copy)

    group, moved = ({"w": f} for f in (factors, toys.factors_of(variant, base)))
    grads, step = {"w": toys.noisy(factors.trainable, 12)}, jnp.asarray(1)
    of_all: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (variant.penalty, (group,)),
        (variant.init_state, (group,)),
        (variant.update, (variant.init_state(group), group, moved, grads, step)),
    ]
    for call, arguments in of_all:
        copies, what = jax.tree.map(jnp.copy, arguments), call.__name__
        require_identical(f"{what}, called again", call(*arguments), call(*arguments))
        require_identical(f"an argument of {what}, afterwards", arguments, copies)


@clause
def narrow_inputs_give_narrow_outputs(variant: Variant) -> None:
    """A bfloat16 or float32 matrix and input give that dtype, as near to the truth as merging."""
    for dtype in (jnp.bfloat16, jnp.float32):
        base = toys.base(variant, dtype)
        factors = toys.factors_of(variant, base)
        weight = variant.weight(base, factors)
        require(
            weight.dtype == wide(dtype),
            f"weight of a {jnp.dtype(dtype)} matrix is {weight.dtype}, expected its factors' dtype",
        )
        exact = weight.astype(jnp.float64)
        x, z, rows = _inputs(base, (3,), dtype)
        for what, got, operand, matrix in (
            ("dot", variant.dot(x, base, factors), x, exact),
            ("dot_t", variant.dot_t(z, base, factors), z, exact.T),
            ("take", variant.take(rows, base, factors), jax.nn.one_hot(rows, len(exact)), exact),
        ):
            require(got.dtype == dtype, f"{what} of {jnp.dtype(dtype)} gives {got.dtype}")
            operand = operand.astype(jnp.float64)
            units = float(jnp.finfo(dtype).eps) * jnp.max(jnp.abs(operand) @ jnp.abs(matrix))
            error = float(jnp.max(jnp.abs(got.astype(jnp.float64) - operand @ matrix)) / units)
            require(
                error <= 8, f"{what} of {jnp.dtype(dtype)} is {error:.2g} units off (at most 8)"
            )


@clause
def products_accumulate_as_asked(variant: Variant) -> None:
    """A product that is to be summed in float32 comes out in float32, also of bfloat16."""
    narrow, wider = jnp.bfloat16, jnp.dtype(jnp.float32)
    base = toys.base(variant, narrow)
    asking = dataclasses.replace(base, accumulate=wider)
    factors = toys.factors_of(variant, base)
    x, z, _ = _inputs(base, (2, 3), narrow)
    for what, call, operand in (("dot", variant.dot, x), ("dot_t", variant.dot_t, z)):
        got, plain = call(operand, asking, factors), call(operand, base, factors)
        require(got.dtype == wider, f"{what} accumulated in float32 gives {got.dtype}")
        size = float(jnp.abs(plain).max())
        require_close(f"{what} accumulated in float32", got / size, plain.astype(wider) / size, 0.1)


def require_products(
    variant: Variant, base: Base, place: str, outers: tuple[tuple[int, ...], ...]
) -> None:
    """Compare `dot`, `dot_t` and `take` with `weight`, for inputs with these leading axes."""
    factors = toys.factors_of(variant, base)
    weight = variant.weight(base, factors)
    wanted = jax.ShapeDtypeStruct(base.shape, base.dtype)
    require_same_form("weight", jax.eval_shape(lambda: weight), wanted)
    for outer in outers:
        x, z, rows = _inputs(base, outer)
        of = f"{place}, {list(outer)}"
        require_close(f"dot {of}", variant.dot(x, base, factors), x @ weight)
        require_close(f"dot_t {of}", variant.dot_t(z, base, factors), z @ weight.T)
        require_close(f"take {of}", variant.take(rows, base, factors), weight[rows])


def _inputs(base: Base, outer: tuple[int, ...], dtype: Any = jnp.float64) -> tuple[Array, ...]:
    """Inputs of `dot`, of `dot_t` and of `take`."""
    x, z = (toys.normal((*outer, size), size, dtype) for size in base.shape)
    rows = np.random.default_rng(9).integers(0, base.shape[0], outer)
    return x, z, jnp.asarray(rows, jnp.int32)


def _calls(base: Base, factors: Factors) -> dict[str, Callable[[Variant], Array]]:
    """Everything that a variant computes with one matrix."""
    x, z, rows = _inputs(base, (2, 3))
    key = jax.random.key(10)
    return {
        "weight": lambda variant: variant.weight(base, factors),
        "dot": lambda variant: variant.dot(x, base, factors),
        "dot with dropout": lambda variant: variant.dot(x, base, factors, dropout_key=key),
        "dot_t": lambda variant: variant.dot_t(z, base, factors),
        "take": lambda variant: variant.take(rows, base, factors),
    }


def _gradients(function: Callable[..., Array], *args: Any) -> tuple[Any, ...]:
    """The gradients, over all arguments, of a random projection of a function's result."""
    result, pull_back = jax.vjp(function, *args)
    return pull_back(toys.normal(result.shape, 11, result.dtype))


OF_A_MATRIX = (
    signatures_are_those_of_the_contract,
    settings_are_static,
    init_is_a_function_of_its_key,
    factors_are_wide,
    starts_at_the_base,
    count_is_exact,
    calls_are_pure,
    products_equal_the_weight,
    gradients_equal_those_through_the_weight,
    narrow_inputs_give_narrow_outputs,
    products_accumulate_as_asked,
    numbers_are_read_from_constants,
)
