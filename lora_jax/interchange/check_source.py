"""What must hold of an adapter on disk beside the shapes of its tensors."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.files.arrays import to_host
from lora_jax.interchange.fill_adapter import cut, each_row
from lora_jax.interchange.names import Names
from lora_jax.interchange.source import TensorNames
from lora_jax.interchange.tied_head import of_both
from lora_jax.methods.peft_lora import HEAD
from lora_jax.partition import flatten
from lora_jax.peft_format import Settings
from lora_jax.transform.placement import Frozen, Trainable


def refuse_tied(
    found: TensorNames, settings: Mapping[str, Settings], tied: Collection[str]
) -> None:
    """PEFT changes a table alone, not a head tied to it; its trainable tokens change both.

    A table that trains in full, or has LoRA, is written twice where the head changes with it. A
    head's DoRA has other magnitudes than its table's.
    """
    kinds = {module: each["peft_type"] for module, each in settings.items()}
    alone = {module: kind for module, kind in kinds.items() if kind != "TRAINABLE_TOKENS"}
    twice = {*found.heads.values()}
    for module, tensors in found.adapters.items():
        if of_both(tensors) and twice.issuperset(tensors.values()):
            alone.pop(module, None)
    alone |= dict.fromkeys(found.full.keys() - twice, "PEFT")
    for name, row in each_row({**found.rows, **found.full}):
        if name in alone and row.path in tied and settings.get(name, {}).get("use_dora"):
            raise ValueError(
                f"'{row.path}' is also the head, whose DoRA in PEFT is not the table's"
            )
        if name in alone and row.path in tied:
            raise ValueError(f"'{row.path}' is also the head, which {alone[name]} leaves as it is")


def with_frozen_layers(found: TensorNames) -> TensorNames:
    """Weights saved whole, of stacks with adapters in other layers, as copies of the base.

    Here one stacked weight has adapters or trains in full. A module is saved whole for its bias,
    too, and then its weight is that of the base.
    """
    adapted = {row.path for _, row in each_row(found.rows)}
    full, copies = {}, dict(found.copies)
    for name, several in found.full.items():
        beside = [row for row in several if row.path in adapted and row.module not in found.rows]
        if beside:
            copies[name] = beside
        if others := [row for row in several if row not in beside]:
            full[name] = others
    return dataclasses.replace(found, full=full, copies=copies)


def check_copies(
    found: TensorNames, leaves: Mapping[str, Any], names: Names, read: Mapping[str, Any]
) -> None:
    """Raise a ValueError if a weight of the base that PEFT has saved is not that of the params."""
    for name, row in each_row(found.copies):
        mine, theirs = leaves[row.path], jnp.asarray(cut(row.place, read[name]))
        mine = mine[row.layer] if names.stacked(row.path) else mine
        dtypes = mine.dtype, theirs.dtype  # one of them may be rounded
        if not any(jnp.array_equal(mine.astype(d), theirs.astype(d)) for d in dtypes):
            said = f"tensor '{name}' is not the '{row.path}' of these params"
            if row.module not in found.rows:
                said += (
                    ", and its other layers have adapters, which one stacked weight cannot have "
                    "here: read the merged model (`merge_and_unload` in PEFT)"
                )
            raise ValueError(said)


def check_heads(found: TensorNames, read: Mapping[str, Any]) -> None:
    """Raise a ValueError if a table that is also the head has other numbers there."""
    for name, table in found.heads.items():
        transposed = table.rpartition(".")[2] in HEAD
        wanted = read[table].T if transposed else read[table]
        if not np.array_equal(read[name], wanted):
            raise ValueError(
                f"tensor '{name}' is of no module, and not equal to '{table}', the table that is "
                "also the head"
            )


def check_finite(trainable: Trainable, frozen: Frozen) -> None:
    """Raise a ValueError if a number of a file was too large for the dtype that it has here.

    Scales, which come of the config, are among the constants.
    """
    adapters = {"trainable": trainable, "constants": frozen.constants, "shared": frozen.shared}
    for path, x in flatten(adapters)[0].items():
        if jnp.issubdtype(x.dtype, jnp.inexact) and not jnp.isfinite(x).all():
            raise ValueError(f"{path}: a number is too large for {x.dtype}")


def check_shared(found: TensorNames, trainable: Trainable, frozen: Frozen) -> None:
    """Raise a ValueError if a file has something for all modules that no variant here shares."""
    known: set[str] = set()
    shapes = [shape for each in frozen.spec.adapted for shape in each.matrices]
    for variant, shared in frozen.shared_by_group(trainable).items() if found.shared else ():
        arrays = jax.tree.map(to_host, {**shared.constants, **shared.trainable})
        known |= variant.shared_to_peft(arrays, shapes).keys()
    if other := sorted(found.shared.keys() - known):
        raise ValueError(
            f"tensor '{found.shared[other[0]]}' is of no module, and nothing shares it"
        )
