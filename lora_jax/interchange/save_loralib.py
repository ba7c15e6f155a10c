"""Write an adapter as a checkpoint that models made of loralib's layers (microsoft/LoRA) load."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from lora_jax.files.arrays import to_host
from lora_jax.files.atomic import write_atomically
from lora_jax.interchange.load_loralib import ALPHA, ENABLED, RANK, A, B
from lora_jax.interchange.matrices import (
    Matrix,
    all_params,
    kernels_of,
    matrices,
    torch_tensor,
    trained_rows,
)
from lora_jax.interchange.names import Names, Row, rows
from lora_jax.interchange.peft_folder import cast
from lora_jax.methods.peft_joined import PARTS
from lora_jax.methods.peft_lora import as_peft
from lora_jax.peft_format import Peft, number
from lora_jax.transform.placement import Frozen, Trainable
from lora_jax.variant import Factors as NoFactors


class Layer(NamedTuple):
    """How a layer is made that loads an adapter: `getattr(loralib, kind)(in, out, **options)`."""

    kind: str
    """`Linear`, `MergedLinear` or `Embedding`."""
    options: dict[str, Any]


class LoralibCheckpoint(NamedTuple):
    """What was written."""

    file: Path
    rank: int
    alpha: float
    layers: Mapping[str, Layer]
    """The layers that a model must have to load it, by the names of its modules."""


def save_loralib(
    file: str | os.PathLike,
    trainable: Trainable,
    frozen: Frozen,
    names: Names,
    *,
    dtype: Any = None,
) -> LoralibCheckpoint:
    """Write a file of safetensors, as `loralib.lora_state_dict` has it.

    It is loaded by `model.load_state_dict(safetensors.torch.load_file(file), strict=False)`. All
    layers have one rank and one lora_alpha, which the header says: smaller ranks are filled up with
    zeros, and where scales differ, they are a part of B and lora_alpha is the rank. The base is
    untouched: what starts from it (PiSSA, OLoRA) has twice the rank. Parameters that train in full
    are in the file, too.

    Args:
      names: what parameters are called in torch: `names_of(model.config)`, or
        `names_from_patterns`.
      dtype: of the tensors; the adapter's own by default.

    Raises:
      ValueError: loralib cannot compute the same, or a weight has no torch name. Nothing is
        written.
    """
    if biased := next((each for each in frozen.spec.adapted if each.bias), None):
        raise ValueError(
            f"'{biased.bias}' is adapted with '{biased.use.path}', and loralib adapts no biases: "
            "merge the weights"
        )
    found: dict[str, dict[int | None, Peft]] = {}
    kinds: dict[str, Matrix] = {}
    for each in matrices(trainable, frozen, names):
        parts = found.setdefault(each.module, {})
        if each.place.part in parts:
            raise ValueError(f"'{each.path}' and another weight are both '{each.module}' in torch")
        parts[each.place.part], kinds[each.module] = _plain(each), each
    if not found:
        raise ValueError("there is no adapter to write: merge the weights, and write the model")
    rank, alpha, folded = _common([peft for parts in found.values() for peft in parts.values()])
    divided = {n for parts in found.values() for n in parts if n is not None}
    enabled = tuple(n in divided for n in range(PARTS)) if divided else None
    tensors = {}
    for module, parts in found.items():
        order: list[int | None] = [None] if None in parts else [*sorted(divided)]
        like = next(iter(parts.values()))
        both = [_padded(parts.get(n), like, rank, folded) for n in order]
        tensors[f"{module}.lora_A"] = np.concatenate([a for a, _ in both])
        tensors[f"{module}.lora_B"] = np.concatenate([b for _, b in both])
    tensors |= _trained_in_full(trainable, frozen, names, set(found))
    arrays = {name: cast(name, x, dtype) for name, x in tensors.items()}
    header = {"format": "pt", ALPHA: repr(alpha), RANK: str(rank)}
    if enabled:
        header[ENABLED] = ",".join(json.dumps(each) for each in enabled)
    write_atomically(Path(file), save(arrays, metadata=header))
    layers = {module: _layer(each, rank, alpha, enabled) for module, each in kinds.items()}
    return LoralibCheckpoint(Path(file), rank, alpha, layers)


def _plain(each: Matrix) -> Peft:
    """A matrix's adapter as PEFT's plain LoRA, with its alpha where it has one.

    Raises:
      ValueError: it has no such adapter, or is a table that is also the head.
    """
    title = each.variant.title or type(each.variant).__name__
    if (both := each.variant.as_lora(each.base, each.factors)) is None:
        raise ValueError(
            f"'{each.path}': {title} is not a plain LoRA, which is all that loralib has: merge the "
            "weights"
        )
    if each.tied:
        raise ValueError(
            f"'{each.path}' is also the head, which loralib.Embedding leaves as it is: merge the "
            "weights"
        )
    peft = each.variant.to_peft(each.base, each.factors)
    if peft is not None and peft.tensors.keys() == {A, B}:
        return peft
    return as_peft(*both, 1.0, NoFactors({}, {}), False)


def _common(every: list[Peft]) -> tuple[int, float, bool]:
    """The rank and alpha of all, and whether scales must be a part of B."""
    rank = max(peft.settings["r"] for peft in every)
    scales = {_scale(peft) for peft in every}
    if len({(peft.settings["r"], peft.settings["lora_alpha"]) for peft in every}) == 1:
        return rank, every[0].settings["lora_alpha"], False
    if len(scales) == 1 and (alpha := number(scales.pop() * rank)) / rank == _scale(every[0]):
        return rank, alpha, False
    return rank, rank, True


def _scale(peft: Peft) -> float:
    return peft.settings["lora_alpha"] / peft.settings["r"]


def _padded(
    peft: Peft | None, like: Peft, rank: int, folded: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A (rank, in) and B (out, rank); zeros for a part without an adapter."""
    a, b = (to_host((peft or like).tensors[name]) for name in (A, B))
    if peft is None:
        a, b = np.zeros_like(a), np.zeros_like(b)
    elif folded:
        b = (_scale(peft) * b).astype(b.dtype)
    missing = (0, rank - len(a))
    return np.pad(a, (missing, (0, 0))), np.pad(b, ((0, 0), missing))


def _layer(each: Matrix, rank: int, alpha: float, enabled: tuple[bool, ...] | None) -> Layer:
    kind = "Embedding" if each.lookup else "Linear"
    options: dict[str, Any] = {"r": rank, "lora_alpha": alpha}
    if each.place.part is not None and enabled is not None:
        kind = "MergedLinear"
        options["enable_lora"] = [*enabled]
    if each.conv1d:
        options["fan_in_fan_out"] = True
    return Layer(kind, options)


def _trained_in_full(
    trainable: Trainable, frozen: Frozen, names: Names, adapted: set[str]
) -> dict[str, np.ndarray]:
    """The tensors of parameters that train in full, whole where they are a part here."""
    params = all_params(trainable, frozen)
    every = [*rows(names, params)]
    parts: dict[str, list[Row]] = {}
    for row in trained_rows(trainable, every):
        if row.path in frozen.spec.tied:
            raise ValueError(
                f"'{row.path}' trains in full and is also the head, which not all models of "
                "loralib share: merge the weights"
            )
        if row.module in adapted and row.leaf == "weight":
            raise ValueError(
                f"'{row.path}' trains in full, and other parts of '{row.module}' have adapters: "
                "merge the weights"
            )
        parts[row.place.name] = [each for each in every if each.place.name == row.place.name]
    kernels = kernels_of(frozen)
    return {name: torch_tensor(each, params, names, kernels) for name, each in parts.items()}
