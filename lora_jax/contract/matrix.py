"""Clauses about one matrix: what a variant's own functions must agree on."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.contract import toys
from lora_jax.contract.clause import (
    by_numpy,
    clause,
    draws_random_numbers,
    require,
    require_close,
    require_identical,
    require_same_form,
)
from lora_jax.contract.toys import (
    array,
    factors_of,
    hashed_key,
    noisy,
    normal,
    quick_factors_of,
    seen_of,
    shapes,
    stack,
    variations,
)
from lora_jax.variant import Base, Factors, Variant, wide


@clause
def signatures_are_those_of_the_contract(variant: Variant) -> None:
    """Methods take the parameters of `Variant`'s methods, by the same names in the same order."""
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
    """A variant is hashable; variants of equal settings are equal, and share compiled programs."""
    twin = dataclasses.replace(variant)
    require(twin == variant, "a variant with the same settings is not equal to it")
    require(hash(twin) == hash(variant), "a variant with the same settings has another hash")
    before = repr(variant)
    base = toys.base(variant)
    x = normal(base.shape[:1], 5)
    jax.eval_shape(lambda base: variant.dot(x, base, factors_of(variant, base)), base)
    require(repr(variant) == before, f"use changed the settings to {variant}")


@clause
def init_is_a_function_of_its_key(variant: Variant) -> None:
    """The same key gives the same factors, from any instance, in any order, stacked or alone."""
    one, two = map(hashed_key, (6, 7))
    base = toys.base(variant)

    def init(each: Variant) -> Callable[[Array, Base], Factors]:
        return by_numpy(lambda key, base: each.init(key, base))  # a new one: nothing is cached

    once = init(variant)
    first, other = once(one, base), once(two, base)
    jax.eval_shape(variant.init, two, toys.bases(variant)["oi"])
    require_identical("init with the same key", init(variant)(one, base), first)
    twin = dataclasses.replace(variant)
    require_identical("init of an equal variant", init(twin)(one, base), first)
    require_same_form("init under eval_shape", jax.eval_shape(variant.init, one, base), first)

    @by_numpy
    def together(one: Array, two: Array, bases: Base) -> tuple[Factors, Factors]:
        both = jax.vmap(variant.init)(jnp.stack([one, two]), bases)
        first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in range(2))
        return first, second

    both = together(one, two, stack(base, base))
    require_close("init under vmap", both, (first, other))

    if draws_random_numbers(variant.init, one, base):
        pairs = zip(*map(jax.tree.leaves, (first, other)), strict=True)
        same = all(np.array_equal(*pair) for pair in pairs)
        require(not same, "init draws random numbers, and another key gives the same")


@clause
def factors_are_wide(variant: Variant) -> None:
    """Trainables have the base's dtype, or float32 where that is narrower."""
    for narrow in (jnp.bfloat16, jnp.float32, jnp.float64):
        base = toys.base(variant, narrow)
        factors = jax.eval_shape(functools.partial(toys.init, variant), 0, base)
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
    bases = {r: each for r, each in toys.bases(variant).items() if r in ("io", "oi", "oio")}
    for roles, weight in _starting_weights(variant, bases, 7).items():
        require_close(f"the weight at the start ({roles})", weight, bases["io"].value, 1e-12)


@functools.partial(by_numpy, static_argnums=0)
def _starting_weights(variant: Variant, bases: dict[str, Base], seed: Array) -> dict[str, Array]:
    return {r: variant.weight(each, toys.init(variant, seed, each)) for r, each in bases.items()}


@clause
def count_is_exact(variant: Variant) -> None:
    """`count` is how many trainable numbers the weight depends on; no trainable is unused."""
    bases = {
        shape: Base(normal(shape, 8), "io", seen=seen_of(variant, shape))
        for shape in shapes(variant)
    }
    used = jax.device_get(_used(variant, bases, 2, {}))
    for each in used.values():
        for name, entries in each.items():
            require(np.any(entries), f"the weight does not depend on the trainable '{name}'")
    # A weight may choose among entries by size (VB-LoRA): lower what it has used, and look again.
    while any(_total(variant, used[shape]) < variant.count(shape) for shape in bases):
        more = jax.device_get(_used(variant, bases, 2, used))
        more = jax.tree.map(np.logical_or, used, more)
        if all(map(np.array_equal, *map(jax.tree.leaves, (used, more)))):
            break
        used = more
    for shape in bases:
        each = used[shape]
        own = {n: x for n, x in each.items() if n not in variant.shared_trainable}
        sizes = " + ".join(f"{name} {list(entries.shape)}" for name, entries in own.items())
        said, total = f"count({shape}) is {variant.count(shape)}", _total(variant, each)
        require(variant.count(shape) == total, f"{said}, the weight depends on {total} of {sizes}")


def _total(variant: Variant, used: dict[str, np.ndarray]) -> int:
    """How many entries of a matrix's own trainables are used."""
    return sum(int(x.sum()) for n, x in used.items() if n not in variant.shared_trainable)


@functools.partial(by_numpy, static_argnums=0)
def _used(
    variant: Variant,
    bases: dict[tuple[int, int], Base],
    seed: Array,
    lowered: dict[tuple[int, int], dict[str, Array]],
) -> dict[tuple[int, int], dict[str, Array]]:
    """Where the gradient of a random projection of each weight is not zero."""

    def used(shape: tuple[int, int], base: Base) -> dict[str, Array]:
        trainable, constants = factors_of(variant, base, seed)
        for name, entries in lowered.get(shape, {}).items():
            trainable[name] = trainable[name] - 10 * entries.astype(trainable[name].dtype)
        transpose = pull_back(variant, base, Factors(trainable, constants))
        return {name: grad != 0 for name, grad in transpose(normal(base.shape, 11)).items()}

    return {shape: used(shape, base) for shape, base in bases.items()}


@clause
def shared_arrays_are_one(variant: Variant) -> None:
    """What trains and is shared is one array: `update` gives the same of it under every path."""
    if not variant.shared_trainable:
        return
    base = toys.base(variant)
    trainable, constants = one = quick_factors_of(variant, base)
    common = {name: trainable[name] for name in variant.shared_trainable}
    after = {"one": one, "two": Factors({**noisy(trainable, 3), **common}, constants)}
    slopes = noisy(trainable, 12), noisy(trainable, 13)
    shared = {name: slopes[0][name] for name in common}
    grads = {"one": slopes[0], "two": {**slopes[1], **shared}}
    _, changed = variant.update(variant.init_state(after), after, after, grads, jnp.asarray(1))
    for name in common:
        each = [trainable[name] for trainable in changed.values() if name in trainable]
        for other in each[1:]:
            require_identical(f"what update gives for '{name}' under another path", other, each[0])


@clause
def numbers_are_read_from_constants(variant: Variant) -> None:
    """Settings that are real numbers act only through `init`'s constants: a sweep traces these.

    So a variant that differs in such a setting computes the same from the same factors.
    """
    others = {name: other for other, name in variations(variant)}
    base = toys.base(variant)
    factors = quick_factors_of(variant, base)
    wanted, *rest = _computed((variant, *others.values()), base, factors)
    for name, got in zip(others, rest, strict=True):
        for what in wanted:
            said = f"{what} with another '{name}' and the same factors"
            require_close(said, got[what], wanted[what])


@functools.partial(by_numpy, static_argnums=0)
def _computed(variants: tuple[Variant, ...], base: Base, factors: Factors) -> list[dict[str, Any]]:
    """Everything that each computes with the same factors."""
    calls = calls_of(base, factors)
    return [{what: call(each) for what, call in calls.items()} for each in variants]


@clause
def calls_are_pure(variant: Variant) -> None:
    """Calling twice gives the same bits, and changes no argument."""
    base = toys.base(variant)
    factors = quick_factors_of(variant, base)

    def everything() -> dict[str, Any]:
        # A new function each time, so that nothing is cached.
        return by_numpy(lambda *arguments: _everything(variant, *arguments))(base, factors)

    first, again = everything(), everything()
    for what in first:
        require_identical(f"{what}, called again", again[what], first[what])


def _everything(variant: Variant, base: Base, factors: Factors) -> dict[str, Any]:
    """What a variant computes, with one matrix and between steps; no argument may change."""
    results = {
        what: _without_changing(what, lambda factors, c=call: c(variant), factors)
        for what, call in calls_of(base, factors).items()
    }
    group = {"w": factors}
    moved = {"w": Factors(noisy(factors.trainable, 13), factors.constants)}
    grads, step = {"w": noisy(factors.trainable, 12)}, jnp.asarray(1)
    state = _without_changing("init_state", variant.init_state, group)
    return results | {
        "penalty": _without_changing("penalty", variant.penalty, group),
        "init_state": state,
        "update": _without_changing("update", variant.update, state, group, moved, grads, step),
    }


def _without_changing(what: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call, which must not change its arguments."""
    before, treedef = jax.tree.flatten(arguments)
    result = call(*arguments)
    same_form = jax.tree.structure(arguments) == treedef
    leaves = jax.tree.leaves(arguments)
    require(
        same_form and all(mine is theirs for mine, theirs in zip(leaves, before, strict=True)),
        f"{what} changes its arguments",
    )
    return result


# -- products: what they equal, and in which dtypes ------------------------------------------------


@clause
def products_equal_the_weight(variant: Variant) -> None:
    """`dot`, `dot_t` and `take` are products with, and rows of, `weight`."""
    outers = {"io": ((), (3,), (2, 3), (0,)), "ioo": ((),), "iio": ((3,),)}
    uses = {}
    for roles, base in toys.bases(variant).items():
        for outer in outers.get(roles, ((2, 3),)):
            uses[f"for {roles}, {list(outer)}"] = base, inputs_of(base, outer)
    require_products(variant, uses)


@clause
def plain_lora_equals_the_weight(variant: Variant) -> None:
    """`as_lora`, where a method has it, gives A and B with W + A^T B = `weight`.

    With the outputs' factors of `as_rescaled_lora`, it is (W + A^T B) g.
    """
    base = toys.base(variant)
    weight, plain, rescaled = _plain_loras(variant, base, quick_factors_of(variant, base))
    if plain is not None:
        a, b = plain
        require_close("W + A^T B of as_lora", np.asarray(base.value) + a.T @ b, weight)
    if rescaled is not None:
        a, b, gain = rescaled
        product = (np.asarray(base.value) + a.T @ b) * (1 if gain is None else gain[None])
        require_close("(W + A^T B) g of as_rescaled_lora", product, weight)


@functools.partial(by_numpy, static_argnums=0)
def _plain_loras(variant: Variant, base: Base, factors: Factors) -> tuple[Any, Any, Any]:
    """The weight, and the plain LoRA that is equal to it, without and with rescaled outputs."""
    both = variant.as_lora(base, factors), variant.as_rescaled_lora(base, factors)
    return variant.weight(base, factors), *both


@clause
def gradients_equal_those_through_the_weight(variant: Variant) -> None:
    """`dot`, `dot_t` and `take` have the gradients of products with `weight`."""
    base = toys.base(variant)
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
        base = toys.base(variant, dtype)
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
    base = toys.base(variant, narrow)
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
    key, gradients = hashed_key(10), noisy(factors.trainable, 12)
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


OF_A_MATRIX = (
    signatures_are_those_of_the_contract,
    settings_are_static,
    init_is_a_function_of_its_key,
    factors_are_wide,
    starts_at_the_base,
    count_is_exact,
    shared_arrays_are_one,
    calls_are_pure,
    products_equal_the_weight,
    plain_lora_equals_the_weight,
    gradients_equal_those_through_the_weight,
    narrow_inputs_give_narrow_outputs,
    products_accumulate_as_asked,
    numbers_are_read_from_constants,
)
