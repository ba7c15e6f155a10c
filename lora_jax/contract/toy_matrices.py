"""Matrices that a variant is tested on, in several layouts and sizes that it takes; its factors."""

import dataclasses
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from lora_jax.contract import keys
from lora_jax.contract.clause import by_numpy
from lora_jax.statistics import Seen
from lora_jax.transform.adapted_weight import with_shared
from lora_jax.transform.placement import PyTree, shared_factors
from lora_jax.variant import Base, Factors, Variant, wide


def unit(variant: Variant) -> int:
    """The smallest u such that the variant works for all the toys' matrices, 2u to 4u wide."""
    reason = None
    for size in range(4, 513):
        try:
            for inputs, outputs in ((2, 3), (3, 2), (2, 2), (4, 2), (2, 6), (4, 3)):
                variant.validate((inputs * size, outputs * size))
        except ValueError as error:
            reason = error
        else:
            return size
    raise ValueError(f"{variant} works for none of the sizes that are tried: {reason}")


def shapes(variant: Variant) -> list[tuple[int, int]]:
    """Some (in, out) shapes: one that widens, one that narrows, and a square."""
    u = unit(variant)
    return [(2 * u, 3 * u), (4 * u, 2 * u), (2 * u, 2 * u)]


def bases(variant: Variant, dtype: Any = jnp.float64) -> dict[str, Base]:
    """One (in, out) matrix in every layout that a model may store it in, by its axes' roles."""
    u = unit(variant)
    matrix = np.asarray(normal((4 * u, 3 * u), 0, dtype, (4 * u) ** -0.5))
    layouts = {
        "io": matrix,
        "oi": matrix.T,
        "ioo": matrix.reshape(4 * u, 3, u),
        "iio": matrix.reshape(4, u, 3 * u),
        "oio": matrix.reshape(4 * u, 3, u).swapaxes(0, 1),
    }
    seen = seen_of(variant, matrix.shape, dtype)
    return {roles: Base(array(value), roles, seen=seen) for roles, value in layouts.items()}


def base(variant: Variant, dtype: Any = jnp.float64) -> Base:
    """One matrix in the plainest layout."""
    return bases(variant, dtype)["io"]


def seen_of(variant: Variant, shape: tuple[int, int], dtype: Any = jnp.float64) -> Seen | None:
    """Random numbers in the place of what the variant would see of an (in, out) matrix in data."""
    if variant.needs is None:
        return None
    shapes = variant.needs.shapes(shape, wide(dtype))
    return sized_as_seen(jax.tree.map(lambda leaf: normal(leaf.shape, 21, leaf.dtype), shapes))


def sized_as_seen(random: Seen) -> Seen:
    """Random numbers with the sizes of what is seen: rows of a length near one, positive values."""
    rows = ("left", "right", "directions")
    numbers = random._asdict().items()
    return random._replace(
        **{n: x / x.shape[-1] ** 0.5 if n in rows else abs(x) for n, x in numbers}
    )


def array(numbers: Any, dtype: Any = None) -> Array:
    """NumPy's numbers as an array; NumPy casts them, as `jnp.asarray` would compile the cast."""
    numbers = np.asarray(numbers, dtype)
    return jnp.asarray(numbers, numbers.dtype)


def normal(
    shape: tuple[int, ...], seed: Any, dtype: Any = jnp.float64, scale: float = 1.0
) -> Array:
    """Normal random numbers by NumPy (no compiling), the same in every dtype up to rounding."""
    return array(scale * np.random.default_rng(seed).standard_normal(shape), dtype)


def noisy(trainable: Any, seed: int = 1, scale: float = 0.3) -> Any:
    """Trainables away from their start, where a zero factor would hide mistakes."""

    def moved(number: int, x: Array) -> Array:
        noise = normal(x.shape, [seed, number], x.dtype, scale)
        # NumPy adds them where it can, so that nothing is compiled.
        return x + noise if isinstance(x, Tracer) else array(np.add(x, noise))

    leaves, treedef = jax.tree.flatten(trainable)
    return treedef.unflatten([moved(number, x) for number, x in enumerate(leaves)])


def stack(*trees: PyTree) -> PyTree:
    """Stack trees of numbers along a new leading axis; by NumPy, as above."""
    return jax.tree.map(lambda *leaves: array(np.stack(leaves)), *trees)


def init(variant: Variant, seed: Any, base: Base) -> Factors:
    """The variant's factors for one matrix, with the arrays that it would share with others."""
    key = keys.key(seed)
    shared = variant.init_shared(key, [base.shape], wide(base.dtype))
    return with_shared(variant.init(key, base), shared_factors(variant, shared))


def factors_of(variant: Variant, base: Base, seed: Any = 2) -> Factors:
    """The variant's factors for a matrix, with random trainables."""
    factors = init(variant, seed, base)
    return Factors(noisy(factors.trainable), factors.constants)


_factors_by_numpy = by_numpy(factors_of, static_argnums=0)


def quick_factors_of(variant: Variant, base: Base) -> Factors:
    """The same without compiling them, in JAX's own arrays."""
    return jax.device_put(_factors_by_numpy(variant, base))


def variations(variant: Variant) -> list[tuple[Variant, str]]:
    """The variant with one real number changed, for each that may be."""
    found = []
    for name, value in _real_numbers(variant).items():
        for changed in (value / 2, 0.25, value + 1):
            try:
                other = dataclasses.replace(variant, **{name: changed})
            except ValueError:
                continue
            if other != variant:
                found.append((other, name))
                break
    return found


def _real_numbers(variant: Variant) -> dict[str, float]:
    """Settings that are real numbers: floats, and integers where the annotation says float."""
    hints, found = typing.get_type_hints(type(variant)), {}
    for field in dataclasses.fields(variant):
        value, hint = getattr(variant, field.name), hints[field.name]
        real = isinstance(value, float) or float in (hint, *typing.get_args(hint))
        if field.init and real and isinstance(value, int | float):
            found[field.name] = value
    return found
