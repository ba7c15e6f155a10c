"""LoRA of weights that torch holds side by side in one: GPT-2's queries, keys and values.

PEFT has one A and one B for all three thirds. Adapters of the thirds are one adapter of all of
them, of rank r_1 + r_2 + r_3: their A one below the other, their B along a diagonal of blocks.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_jax.methods.peft_lora import LINEAR
from lora_jax.peft_format import Peft

PARTS = 3
_A, _B, _M = (LINEAR[name].name for name in "abm")


def joined(parts: Mapping[int, Peft]) -> Peft:
    """The adapter of all thirds, from those of some of them.

    If all have the same A, as what was read from PEFT has, the rank stays.

    Raises:
      ValueError: they are not LoRA's, or only some have magnitudes (DoRA).
    """
    first = parts[min(parts)]
    if any(each.settings["peft_type"] != "LORA" for each in parts.values()):
        raise ValueError("PEFT adapts queries, keys and values of one weight together")
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


def third(peft: Peft, part: int) -> Peft:
    """The adapter of one third; its A is that of all.

    Raises:
      ValueError: it is not LoRA's.
    """
    if peft.settings["peft_type"] != "LORA":
        raise ValueError(f"{peft.settings['peft_type']} of joined weights is not here")

    def cut(name: str, x: Any) -> Any:
        size = x.shape[0] // PARTS
        return x if name == _A else x[part * size : (part + 1) * size]

    return peft._replace(tensors={name: cut(name, x) for name, x in peft.tensors.items()})
