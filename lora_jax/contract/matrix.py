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

from lora_jax.contract import keys, toy_matrices
from lora_jax.contract.clause import (
    by_numpy,
    clause,
    draws_random_numbers,
    require,
    require_close,
    require_identical,
    require_same_form,
)
from lora_jax.contract.products import (
    calls_of,
    gradients_equal_those_through_the_weight,
    narrow_inputs_give_narrow_outputs,
    plain_lora_equals_the_weight,
    products_accumulate_as_asked,
    products_equal_the_weight,
    pull_back,
)
from lora_jax.contract.toy_matrices import (
    factors_of,
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
    base = toy_matrices.base(variant)
    x = normal(base.shape[:1], 5)
    jax.eval_shape(lambda base: variant.dot(x, base, factors_of(variant, base)), base)
    require(repr(variant) == before, f"use changed the settings to {variant}")


@clause
def init_is_a_function_of_its_key(variant: Variant) -> None:
    """The same key gives the same factors, from any instance, in any order, stacked or alone."""
    one, two = map(keys.key, (6, 7))
    base = toy_matrices.base(variant)

    def init(each: Variant) -> Callable[[Array, Base], Factors]:
        return by_numpy(lambda key, base: each.init(key, base))  # a new one: nothing is cached

    once = init(variant)
    first, other = once(one, base), once(two, base)
    jax.eval_shape(variant.init, two, toy_matrices.bases(variant)["oi"])
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
        base = toy_matrices.base(variant, narrow)
        factors = jax.eval_shape(functools.partial(toy_matrices.init, variant), 0, base)
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
    bases = {r: each for r, each in toy_matrices.bases(variant).items() if r in ("io", "oi", "oio")}
    for roles, weight in _starting_weights(variant, bases, 7).items():
        require_close(f"the weight at the start ({roles})", weight, bases["io"].value, 1e-12)


@functools.partial(by_numpy, static_argnums=0)
def _starting_weights(variant: Variant, bases: dict[str, Base], seed: Array) -> dict[str, Array]:
    return {
        r: variant.weight(each, toy_matrices.init(variant, seed, each)) for r, each in bases.items()
    }


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
    base = toy_matrices.base(variant)
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
    base = toy_matrices.base(variant)
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
    base = toy_matrices.base(variant)
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
