"""A bank whose stacked layers are separate arrays, for programs on CPUs (see `separate_layers`)."""

import dataclasses
from typing import Any

from lora_jax.models.parts.separate_layers import separate
from lora_jax.serving.bank import Bank

STACKED = ("trainable", "constants")
"""The parts of a bank whose arrays have the stacked axes of their weights in front."""


def separate_bank(bank: Bank, base: Any = None) -> Bank:
    """The bank with `Layers` in place of arrays of stacked layers, whose memory they share.

    `lora_jax.models.parts.separate_layers.stacked` undoes it, inside a compiled program. Nothing
    else may be done with the bank.

    Args:
        base: `base.base` of what this made of another bank with the same base, to take it again.
    """
    if base is None:
        base = separate(bank.base.base)
    if base is bank.base.base:  # not on one CPU, or in a loop over its layers
        return bank
    held = bank.held
    assert held is not None
    stacks = {
        f"{number}/{key.path}": (key, x)
        for number, (key, x) in enumerate(held.arrays.items())
        if key.part in STACKED
    }
    apart = separate({name: x for name, (_, x) in stacks.items()})
    arrays = held.arrays | {key: apart[name] for name, (key, _) in stacks.items()}
    return dataclasses.replace(
        bank,
        base=dataclasses.replace(bank.base, base=base),
        held=dataclasses.replace(held, arrays=arrays),
    )
