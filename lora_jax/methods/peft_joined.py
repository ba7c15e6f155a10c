"""LoRA and IA3 of weights that torch holds side by side in one: GPT-2's queries, keys and values.

PEFT has one A and one B for all three thirds. Adapters of the thirds are one adapter of all of
them, of rank r_1 + r_2 + r_3: their A one below the other, their B along a diagonal of blocks.
IA3's vectors of outputs lie one below the other, too; its vector of inputs is that of all thirds.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_jax.methods.peft_lora import LINEAR
from lora_jax.peft_format import Peft

PARTS = 3
_L = "ia3_l"
_A, _B, _M = (LINEAR[name].name for name in "abm")


def joined(parts: Mapping[int, Peft]) -> Peft:
    """The adapter of all thirds, from those of some of them.

    If all have the same A, as what was read from PEFT has, the rank stays.

    Raises:
      ValueError: they are not LoRA's or IA3's, only some have magnitudes (DoRA), or they scale
        other inputs.
    """
    first = parts[min(parts)]
    kinds = {each.settings["peft_type"] for each in parts.values()}
    if kinds == {"IA3"}:
        return _joined_scales(parts)
    if kinds != {"LORA"}:
        raise ValueError(
            "PEFT adapts queries, keys and values of one weight together, and "
            f"{' with '.join(sorted(kinds))} of them is not written; merge the weights instead"
        )
    scaled = {
        n: each.settings["lora_alpha"] / each.settings["r"] * each.tensors[_B]
        for n, each in parts.items()
    }
    rows, same = [each.tensors[_A] for each in parts.values()], False
    if len(parts) == PARTS:
        same = all(np.array_equal(each, rows[0]) for each in rows)
    size, rank = len(first.tensors[_B]), len(rows[0]) if same else sum(map(len, rows))
    b, start = np.zeros((PARTS * size, rank), first.tensors[_B].dtype), 0
    for part, own in sorted(scaled.items()):
        b[part * size : (part + 1) * size, start : start + own.shape[1]] = own
        start += 0 if same else own.shape[1]
    a = rows[0] if same else np.concatenate([parts[n].tensors[_A] for n in sorted(parts)])
    tensors = {_A: a, _B: b}
    if any(_M in each.tensors for each in parts.values()):
        if len(parts) < PARTS or not all(_M in each.tensors for each in parts.values()):
            raise ValueError("DoRA in PEFT takes queries, keys and values, or none of them")
        tensors[_M] = np.concatenate([parts[n].tensors[_M] for n in range(PARTS)])
    return Peft({**first.settings, "r": rank, "lora_alpha": rank}, tensors)


def _joined_scales(parts: Mapping[int, Peft]) -> Peft:
    first = parts[min(parts)]
    scales = {n: each.tensors[_L] for n, each in parts.items()}
    if not any(each.settings["feedforward_modules"] for each in parts.values()):
        ones = np.ones_like(first.tensors[_L])
        return first._replace(
            tensors={_L: np.concatenate([scales.get(n, ones) for n in range(PARTS)])}
        )
    if len(parts) < PARTS or not all(np.array_equal(x, first.tensors[_L]) for x in scales.values()):
        raise ValueError(
            "PEFT's IA3 scales the inputs of queries, keys and values of one weight alike, and "
            "these differ; merge the weights instead"
        )
    return first


def third(peft: Peft, part: int) -> Peft:
    """The adapter of one third; its A is that of all.

    Raises:
      ValueError: it is not LoRA's or IA3's.
    """
    kind = peft.settings["peft_type"]
    if kind not in ("LORA", "IA3"):
        raise ValueError(
            f"{kind} of a weight that joins queries, keys and values is not read; merge it in PEFT "
            "(`merge_and_unload`), and read the merged model"
        )
    whole = _L if peft.settings.get("feedforward_modules") else _A

    def cut(name: str, x: Any) -> Any:
        size = x.shape[0] // PARTS
        return x if name == whole else x[part * size : (part + 1) * size]

    return peft._replace(tensors={name: cut(name, x) for name, x in peft.tensors.items()})
