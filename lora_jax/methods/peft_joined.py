"""Adapters of weights that torch holds side by side in one: GPT-2's queries, keys and values.

PEFT adapts all three thirds together. A method's layouts say what of that is a third's own:
`Layout.outputs` is the axis along which the thirds of a tensor lie, or "all" for a tensor that the
thirds share. LoRA's and AdaLoRA's thirds need not share their A: adapters of ranks r_1, r_2 and r_3
are one of rank r_1 + r_2 + r_3, their A one below the other, their B along a diagonal of blocks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora_jax.methods.peft_lora import ADALORA, BIAS, LINEAR, adalora_scale, adalora_sum
from lora_jax.peft_format import Layout, Layouts, Peft, same, told_apart

PARTS = 3
WHOLE = "queries, keys and values of one weight"


def joined(parts: Mapping[int, Peft], layouts: Layouts) -> Peft:
    """The adapter of all thirds, from those of some of them; the others stay as they are.

    Args:
      layouts: those of the method (`Variant.peft_layouts`).

    Raises:
      ValueError: an adapter of a third is not part of one of all thirds, or the thirds differ in
        what they share in PEFT, or the method cannot leave the others as they are.
    """
    kind = " with ".join(sorted({one.settings["peft_type"] for one in parts.values()}))
    known = _by_name(layouts)
    if not all(_divides(one, known) for one in parts.values()) or " with " in kind:
        raise _refused(f"PEFT adapts {WHOLE} together, and {kind} of them is not written")
    parts = _of_one_rank(kind, parts)
    settings = [one.settings for one in parts.values()]
    for name in dict.fromkeys(name for each in settings for name in each):
        values = [each.get(name) for each in settings]
        if other := [x for x in values if x != values[0]]:
            one, another = told_apart(values[0], other[0])
            raise _refused(f"PEFT has one {name} for {WHOLE}, and not {one} and {another}")
    first = next(iter(parts.values()))
    idle = [known[name].idle for name in first.tensors if known[name].outputs != "all"]
    if len(parts) < PARTS and (not idle or None in idle):
        raise _refused(f"PEFT's {kind} takes {WHOLE}, or none of them")
    return first._replace(tensors={name: _whole(known[name], parts) for name in first.tensors})


def third(peft: Peft, part: int, layouts: Layouts) -> Peft:
    """The adapter of one third, from that of all; works on shapes, too.

    Args:
      layouts: those of the method (`Variant.peft_layouts`).

    Raises:
      ValueError: an adapter of a third is not part of one of all thirds, or a tensor has no thirds.
    """
    known = _by_name(layouts)
    if not _divides(peft, known):
        raise ValueError(
            f"{peft.settings['peft_type']} of a weight that joins queries, keys and values is not "
            "read; merge it in PEFT (`merge_and_unload`), and read the merged model"
        )

    def cut(name: str, x: Any) -> Any:
        if not isinstance(axis := known[name].outputs, int):
            return x
        size, rest = divmod(x.shape[axis], PARTS)
        if rest:
            raise ValueError(f"'{name}' cannot be cut into queries, keys and values")
        return x[(slice(None),) * axis + (slice(part * size, (part + 1) * size),)]

    return peft._replace(tensors={name: cut(name, x) for name, x in peft.tensors.items()})


def _by_name(layouts: Layouts) -> dict[str, Layout]:
    """By PEFT's names of the tensors; also LoRA's, which other methods may be written as."""
    return {one.name: one for one in (*LINEAR.values(), same(BIAS, 0, 0.0), *layouts.values())}


def _divides(peft: Peft, known: Mapping[str, Layout]) -> bool:
    """Whether it is known what of every tensor each output has."""
    return all(name in known and known[name].outputs is not None for name in peft.tensors)


def _whole(layout: Layout, parts: Mapping[int, Peft]) -> np.ndarray:
    """PEFT's tensor for all thirds."""
    found = {n: one.tensors[layout.name] for n, one in parts.items()}
    first = next(iter(found.values()))
    if isinstance(layout.outputs, int):
        idle = np.full_like(first, layout.idle or 0)
        return np.concatenate([found.get(n, idle) for n in range(PARTS)], axis=layout.outputs)
    if not _alike([*parts.values()], [layout.name]):
        raise _refused(f"PEFT has one {layout.name} for {WHOLE}, and these differ")
    return first


def _of_one_rank(kind: str, parts: Mapping[int, Peft]) -> Mapping[int, Peft]:
    """LoRA and AdaLoRA of the same rank, scale and A; other methods as they are."""
    each = list(parts.values())
    if kind == "LORA":
        a, b = (LINEAR[name].name for name in "ab")
        each = [_times(one, b, one.settings["lora_alpha"] / one.settings["r"]) for one in each]
        each = _of_one_a(each, (a,), b)
        rank = len(each[0].tensors[a])
        settings = {"r": rank, "lora_alpha": rank}
    elif kind == ADALORA and not _alike(each, rows := ("lora_A", "lora_E")):
        settings = adalora_sum([one.settings for one in each])
        each = [_times(one, "lora_E", adalora_scale(one.settings)) for one in each]
        each = _of_one_a(each, rows, "lora_B")
    else:
        return parts
    return {
        n: Peft({**x.settings, **settings}, x.tensors) for n, x in zip(parts, each, strict=True)
    }


def _times(peft: Peft, name: str, scale: float) -> Peft:
    return peft._replace(tensors={**peft.tensors, name: scale * peft.tensors[name]})


def _of_one_a(each: Sequence[Peft], rows: Sequence[str], b: str) -> list[Peft]:
    """Adapters with all rows of all of them, unless all have the same; their own columns of B.

    Args:
      rows, b: the names of tensors with as many rows as the rank, and of that with as many columns.
    """
    if _alike(each, rows):
        return list(each)
    every = {name: np.concatenate([one.tensors[name] for one in each]) for name in rows}
    ranks, found = [one.tensors[b].shape[1] for one in each], []
    for n, one in enumerate(each):
        around = sum(ranks[:n]), sum(ranks[n + 1 :])
        tensors = {**one.tensors, **every, b: np.pad(one.tensors[b], ((0, 0), around))}
        found.append(one._replace(tensors=tensors))
    return found


def _alike(each: Sequence[Peft], names: Sequence[str]) -> bool:
    first = each[0].tensors
    return all(np.array_equal(one.tensors[n], first[n]) for one in each for n in names)


def _refused(said: str) -> ValueError:
    return ValueError(f"{said}; merge the weights instead")
