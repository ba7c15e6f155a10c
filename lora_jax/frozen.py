"""Adapted weights as data: where each one is, its factors, and what `init` found out about it."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax import select
from lora_jax.discover import WeightUse
from lora_jax.select import Assigned, SomeLayers
from lora_jax.variant import Base, Factors, Variant
from lora_jax.views import View
from lora_jax.weight import Weight

PyTree = Any
Trainable = dict[str, dict[str, Any]]
"""`{"adapters": {path: {name: array}}, "params": {path: array}}`"""


@dataclasses.dataclass(frozen=True)
class Placement:
    """One adapted weight: how the function uses it, and the variant that acts on it."""

    use: WeightUse
    variant: Variant
    layers: Assigned
    """What was asked for: the variant, or that of each layer of a stack where they differ."""

    @property
    def count(self) -> int:
        """How many numbers are trained for it."""
        return select.count(self.layers, self.use)


@dataclasses.dataclass(frozen=True)
class Spec:
    """What `init` found out; static, it travels inside `Frozen`."""

    treedef: Any
    paths: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...]
    """The leaves of the user's tree that are not arrays."""
    placements: tuple[Placement, ...]

    def tree(self, arrays: Mapping[str, Any]) -> PyTree:
        """The user's tree, with these arrays in it."""
        leaves = {**dict(self.settings), **arrays}
        return self.treedef.unflatten([leaves[path] for path in self.paths])

    def groups(self) -> dict[Variant, list[str]]:
        """The adapted paths of each variant."""
        groups: dict[Variant, list[str]] = {}
        for each in self.placements:
            variant = each.variant.inner if isinstance(each.variant, SomeLayers) else each.variant
            groups.setdefault(variant, []).append(each.use.path)
        return groups


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """Everything that is not trained, with the static description of how it is used."""

    base: dict[str, Array]
    """The frozen parameters by path, adapted weights included, as the user's tree has them."""
    constants: dict[str, dict[str, Array]]
    """The constants of each adapter: scales, masks, and whatever else a study may vary."""
    spec: Spec = dataclasses.field(metadata={"static": True})


def variants_of(assigned: Assigned) -> list[Variant]:
    each = assigned if isinstance(assigned, tuple) else (assigned,)
    return [variant for variant in each if variant is not None]


def place(use: WeightUse, assigned: Assigned) -> Placement:
    """Check that the weight can be adapted, and make the variants of its layers one."""
    if not use.is_matrix:
        how = ", ".join(dict.fromkeys(str(each) for each in use.uses)) or "not at all"
        raise ValueError(
            f"'{use.path}' is selected, but the function never multiplies by it (used: {how})"
        )
    try:
        for variant in variants_of(assigned):
            variant.validate(use.matrix)
        if not isinstance(assigned, tuple):
            return Placement(use, assigned, assigned)
        first, *_ = aligned(assigned)
    except ValueError as error:
        raise ValueError(f"'{use.path}': {error}") from None
    return Placement(use, SomeLayers(first) if None in assigned else first, assigned)


def aligned(assigned: tuple[Variant | None, ...]) -> tuple[Variant, ...]:
    """The variants of the layers that have one, made equal in structure."""
    chosen = variants_of(assigned)
    return chosen[0].align(tuple(chosen))


def fold_path(key: Array, path: str) -> Array:
    """A key of the path's own, the same whatever other paths there are."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def base_of(use: WeightUse, value: Array) -> Base:
    """The weight as something to multiply by, stacked axes leading."""
    value = jnp.moveaxis(value, use.stack, range(len(use.stack)))
    axes = sorted((*use.inputs, *use.outputs))
    return Base(value, "".join("i" if axis in use.inputs else "o" for axis in axes))


def init_factors(key: Array, placement: Placement, value: Array) -> Factors:
    use, base = placement.use, base_of(placement.use, value)

    def init(variant: Variant, keys: Array, base: Base, depth: int) -> Factors:
        one = variant.init
        for _ in range(depth):
            one = jax.vmap(one)
        return one(keys, base)

    keys = jax.random.split(key, use.stack_shape) if use.stack else key
    if not isinstance(placement.layers, tuple):
        return init(placement.variant, keys, base, len(use.stack))
    # Layers that differ: made one by one, then stacked.
    like = aligned(placement.layers)
    remaining = iter(like)
    each = []
    for index, variant in enumerate(placement.layers):
        row = jax.tree.map(lambda leaf, index=index: leaf[index], base)
        wanted = like[0] if variant is None else next(remaining)
        factors = init(wanted, keys[index], row, len(use.stack) - 1)
        if None in placement.layers:
            active = jnp.full(use.stack_shape[1:], variant is not None)
            factors.constants["active"] = active
        each.append(factors)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def weight_of(
    placement: Placement, trainable: Trainable, frozen: Frozen, dropout_key: Array | None
) -> Weight:
    use = placement.use
    factors = Factors(trainable["adapters"][use.path], frozen.constants[use.path])
    if dropout_key is not None:
        dropout_key = fold_path(dropout_key, use.path)
        dropout_key = jax.random.split(dropout_key, use.stack_shape) if use.stack else dropout_key
    value = frozen.base[use.path]
    view = View.of(use.shape)
    return Weight(
        base=base_of(use, value),
        factors=factors,
        dropout_key=dropout_key,
        variant=placement.variant,
        inputs=use.inputs,
        outputs=use.outputs,
        stack=view.pick(use.stack),
        view=view,
        dtypes=(jnp.dtype(value.dtype),),
    )


def grouped(
    adapters: Mapping[str, dict[str, Array]], frozen: Frozen
) -> list[tuple[Variant, dict[str, Factors]]]:
    return [
        (variant, {path: Factors(adapters[path], frozen.constants[path]) for path in paths})
        for variant, paths in frozen.spec.groups().items()
    ]
