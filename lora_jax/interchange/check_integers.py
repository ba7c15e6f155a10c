"""Refuse integers on disk where an adapter has real numbers; indices are integers."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from lora_jax.interchange.source import Source, TensorNames
from lora_jax.transform.placement import Frozen, Trainable, variants_of


def check_integers(
    source: Source,
    found: TensorNames,
    trainable: Trainable,
    frozen: Frozen,
    read: Mapping[str, Any],
) -> None:
    """Check the dtypes of a source's tensors, or of their shapes, by what `init` gave.

    Raises:
      ValueError: a tensor holds integers, and what it becomes are real numbers.
    """
    integers = {name for name, x in read.items() if jnp.issubdtype(x.dtype, jnp.integer)}
    if not integers:
        return
    indices, whole = set(), set(_of_integers(trainable, frozen))
    for module, rows in found.rows.items():
        for suffix, name in found.adapters[module].items():
            if any((row.path, suffix) in whole for row in rows):
                indices.add(name)
    if wrong := sorted(integers - indices):
        raise ValueError(
            f"tensor '{wrong[0]}' is {source.abstract(wrong[0]).dtype}, and an adapter's numbers "
            "are floats; only indices are integers"
        )


def _of_integers(trainable: Trainable, frozen: Frozen) -> Iterator[tuple[str, str]]:
    """The path of each weight with a factor of integers, and what PEFT calls that factor."""
    for placement in frozen.spec.adapted:
        path = placement.use.path
        factors = {**trainable["adapters"][path], **frozen.constants[path]}
        for variant in variants_of(placement.layers):
            for name, layout in variant.peft_layouts.items():
                if name in factors and jnp.issubdtype(factors[name].dtype, jnp.integer):
                    yield path, layout.name
