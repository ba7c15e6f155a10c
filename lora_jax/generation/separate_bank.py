"""A bank whose stacked layers are separate arrays, for programs on CPUs (see `separate_layers`)."""

import dataclasses

from lora_jax.models.parts.separate_layers import separate
from lora_jax.serving.bank import Bank

STACKED = ("trainable", "constants")
"""The parts of a bank whose arrays have the stacked axes of their weights in front."""


def separate_bank(bank: Bank) -> Bank:
    """The bank with `Layers` in place of arrays of stacked layers, whose memory they share.

    `lora_jax.models.parts.separate_layers.stacked` undoes it, inside a compiled program. Nothing
    else may be done with the bank.
    """
    held = bank.held
    assert held is not None
    stacks = {
        f"{number}/{key.path}": (key, x)
        for number, (key, x) in enumerate(held.arrays.items())
        if key.part in STACKED
    }
    arrays = {name: x for name, (_, x) in stacks.items()}
    apart = separate({"base": bank.base.base, "held": arrays})
    separated = {key: apart["held"][name] for name, (key, _) in stacks.items()}
    return dataclasses.replace(
        bank,
        base=dataclasses.replace(bank.base, base=apart["base"]),
        held=dataclasses.replace(held, arrays={**held.arrays, **separated}),
    )
