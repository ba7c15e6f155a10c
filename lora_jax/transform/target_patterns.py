"""Which weights a variant adapts: target patterns, layers of stacked weights, and strict errors."""

import dataclasses
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import jax.numpy as jnp
from jax import Array

from lora_jax.base import Uses, WeightUse
from lora_jax.partition import select_paths
from lora_jax.variant import Base, Factors, Variant

ALL_LINEAR = "all-linear"
ALL_CONV = f"{ALL_LINEAR}+conv"
GROUPS = (ALL_LINEAR, ALL_CONV)
"""Words that stand for patterns; what they select besides is not an error."""
ENTRY_BY_ENTRY = {"add", "add_any", "broadcast_in_dim", "div", "mul", "sub"}
WITHOUT_PRODUCT = "arrays without a product, such as biases, norms and positions"
"""What a group leaves out that few want to adapt: arrays used only in `ENTRY_BY_ENTRY`."""


@dataclasses.dataclass(frozen=True)
class Layers:
    """A pattern for some layers only (see `layers`)."""

    pattern: str
    which: tuple[int | None, int | None, int | None] | tuple[int]

    def indices(self, count: int) -> range | tuple[int]:
        if len(self.which) == 3:
            return range(*slice(*self.which).indices(count))
        (index,) = self.which
        if not -count <= index < count:
            raise ValueError(f"layers('{self.pattern}', {index}): there are {count} layers")
        return (index % count,)

    def __str__(self) -> str:
        inside = ":".join("" if n is None else str(n) for n in self.which)
        return f"layers('{self.pattern}', [{inside}])"


Pattern = str | Layers
Targets = str | Layers | Sequence[Pattern] | Mapping[Any, Variant | None]
Rule = tuple[Pattern, Variant | None]
Assigned = Variant | tuple[Variant | None, ...]


def layers(pattern: str, which: slice | int) -> Layers:
    """Targets in some layers: `layers("attention/.*/kernel", slice(-4, None))` for the last four.

    Layers are counted along the first stacked axis of a stacked weight, and otherwise by the first
    part of the path that is a number or ends in one (`blocks/3/mlp/kernel`, `block_3/mlp/kernel`).
    """
    parts = (which.start, which.stop, which.step) if isinstance(which, slice) else (which,)
    if not all(isinstance(each, Integral) or (each is None and len(parts) == 3) for each in parts):
        raise ValueError(f"layers('{pattern}', ...) takes an integer or a slice, not {which!r}")
    return Layers(pattern, parts)


def as_rules(variant: Variant | None, targets: Targets) -> tuple[Rule, ...]:
    """The targets as ordered pairs of pattern and variant (None leaves a weight alone)."""
    if isinstance(targets, str | Layers):
        targets = [targets]
    if not isinstance(targets, Iterable):
        raise ValueError(f"targets must be patterns, or map patterns to variants, not {targets!r}")
    rules = tuple(
        targets.items() if isinstance(targets, Mapping) else ((t, variant) for t in targets)
    )
    if not rules:
        raise ValueError(f"targets is empty; name weights, or leave it out for '{ALL_LINEAR}'")
    for pattern, _ in rules:
        if not isinstance(pattern, str | Layers):
            raise ValueError(f"targets: {pattern!r} is not a pattern; write a regular expression")
    return rules


def assign(rules: Sequence[Rule], uses: Uses) -> dict[str, Assigned]:
    """The variant of every selected weight, or of each of its layers if they differ.

    If several patterns match a weight (or a layer), the one that is its path decides, or else the
    first.

    Raises:
      ValueError: a pattern matches nothing, or only what others have taken for other variants.
    """
    taken: dict[str, list[Variant | str | None]] = {}
    free = "free"
    for pattern, variant in sorted(rules, key=lambda rule: name_of(rule[0]) not in uses):
        claimed = False
        whole = {path for path, slots in taken.items() if free not in slots}
        for path, which in _matching(pattern, uses, whole).items():
            slots = taken.setdefault(path, [free] * _count(uses[path]))
            for index in which:
                if slots[index] is free:
                    slots[index] = variant
                # A weight that two patterns select for one variant is not a contradiction.
                claimed = claimed or slots[index] == variant
        if not claimed:
            raise ValueError(f"pattern '{pattern}' selects only what other patterns have taken")
    assigned: dict[str, Assigned] = {}
    for path in uses:  # in tree order
        slots = [None if slot is free else slot for slot in taken.get(path, [None])]
        if any(slot is not None for slot in slots):
            uniform = all(slot == slots[0] for slot in slots)
            assigned[path] = slots[0] if uniform else tuple(slots)  # type: ignore[assignment]
    return assigned


def adapting(assigned: Assigned) -> Assigned | None:
    """`assigned` without methods that only choose what trains; None if nothing remains."""
    if not isinstance(assigned, tuple):
        return assigned if assigned.adapts else None
    kept = tuple(each if each is not None and each.adapts else None for each in assigned)
    return kept if any(kept) else None


def _count(use: WeightUse) -> int:
    return use.stack_shape[0] if use.stack else 1


def _matching(pattern: Pattern, uses: Uses, taken: Collection[str]) -> dict[str, Sequence[int]]:
    """The paths that a pattern selects, and the selected layers of each.

    A path that earlier patterns have `taken` whole is passed over if it has no layer number.
    """
    name = name_of(pattern)
    if name not in GROUPS:
        paths = select_paths([name], uses, "weight", GROUPS)
    elif not (paths := group(name, uses)):
        raise ValueError(
            f"'{name}' selects nothing: activations are multiplied by no weight as it is, "
            "embeddings aside; name the weights"
        )
    if isinstance(pattern, str):
        return {path: range(_count(uses[path])) for path in paths}
    numbers = {path: _layer_number(path) for path in paths if not uses[path].stack}
    for path, number in numbers.items():
        if number is None and path not in taken:
            raise ValueError(
                f"'{path}' is neither a stack of layers nor has a layer number in its path; name "
                f"it without layers, or leave it out: {{'{path}': None, {pattern}: variant}}"
            )
    deepest = max((each for each in numbers.values() if each is not None), default=0) + 1
    chosen: dict[str, Sequence[int]] = {}
    for path in paths:
        if uses[path].stack:
            chosen[path] = pattern.indices(_count(uses[path]))
        elif numbers[path] in pattern.indices(deepest):
            chosen[path] = (0,)
    if not any(chosen.values()):
        raise ValueError(f"{pattern} selects no layer")
    return chosen


def name_of(pattern: Pattern) -> str:
    """The regular expression, path or group of a pattern."""
    return pattern if isinstance(pattern, str) else pattern.pattern


def group(name: str, uses: Uses) -> list[str]:
    """The paths that a word of `GROUPS` stands for."""
    return [
        path
        for path, use in uses.items()
        if use.is_linear or (name == ALL_CONV and use.is_convolution)
    ]


def left_out(rules: Sequence[Rule], uses: Uses, taken: Collection[str]) -> dict[str, list[str]]:
    """Weights that a group passes over although a user may want them, by what they are."""
    found: dict[str, list[str]] = {}
    if not any(name_of(pattern) in GROUPS for pattern, _ in rules):
        return found
    for path, use in uses.items():
        if path not in taken and (kind := _kind_left_out(use)):
            found.setdefault(kind, []).append(path)
    return found


def _kind_left_out(use: WeightUse) -> str | None:
    """What a weight is that a group passes over; None for vectors, tables and integers."""
    kinds = {each.kind for each in use.uses}
    if jnp.issubdtype(use.dtype, jnp.complexfloating):
        return "complex arrays"
    if not use.is_real:
        return None
    if use.is_convolution:
        return "convolutions"
    if use.output_embedding:
        return "output embeddings"
    if sum(size > 1 for size in use.shape) < 2 or "lookup" in kinds:
        return None
    if "product" in kinds or "transposed product" in kinds:
        return None if use.activations else "weights that only meet other weights"
    if not kinds:
        return "arrays that are not used"
    if kinds <= ENTRY_BY_ENTRY and not use.is_matrix:  # or else other weights meet it there
        return WITHOUT_PRODUCT
    return f"arrays used only by {', '.join(sorted(kinds - {'broadcast_in_dim'}))}"


def _layer_number(path: str) -> int | None:
    number = re.search(r"(\d+)(?:/|$)", path)
    return None if number is None else int(number[1])


@dataclasses.dataclass(frozen=True)
class SomeLayers(Variant):
    """A variant that acts on some matrices of a stack; the constant `active` says on which."""

    inner: Variant

    def weight(self, base: Base, factors: Factors) -> Array:
        weight = self.inner.weight(base, factors)
        return jnp.where(factors.constants["active"], weight, base.dense().astype(weight.dtype))

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        adapted = self.inner.dot(x, base, factors, dropout_key=dropout_key)
        return jnp.where(factors.constants["active"], adapted, base.dot(x))

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        adapted = self.inner.dot_t(x, base, factors)
        return jnp.where(factors.constants["active"], adapted, base.dot_t(x))

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        adapted = self.inner.take(rows, base, factors)
        return jnp.where(factors.constants["active"], adapted, base.take(rows))

    @property
    def adapts_bias(self) -> bool:
        return self.inner.adapts_bias

    def bias(self, bias: Array, factors: Factors) -> Array:
        adapted = self.inner.bias(bias, factors)
        return jnp.where(factors.constants["active"], adapted, bias.astype(adapted.dtype))


def count(variant: Assigned, use: WeightUse) -> int:
    """How many numbers are trained for a weight, over all matrices of its stack."""
    if isinstance(variant, tuple):
        below = math.prod(use.stack_shape[1:])
        return below * sum(each.count(use.matrix) for each in variant if each is not None)
    return math.prod(use.stack_shape) * variant.count(use.matrix)
