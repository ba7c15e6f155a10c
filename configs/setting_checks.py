"""What the values of settings must pass; a check says what is wrong with a value."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Check = Callable[[Any], str]
"""From a value to what is wrong with it, as the end of a message; empty if nothing is."""


def within(wanted: str, test: Callable[[Any], bool]) -> Check:
    """A check that a number is finite and passes a test; `wanted` says which numbers do."""

    def check(value: Any) -> str:
        try:
            good = value is not None and math.isfinite(value) and test(value)
        except OverflowError:  # of an integer that no float holds
            return f" must be {wanted}, and a number that a float holds"
        return "" if good else f" must be {wanted}, got {value}"

    return check


def one_of(*choices: str) -> Check:
    """A check that a text is one of a few."""
    return lambda value: "" if value in choices else f" '{value}': expected {' or '.join(choices)}"


def at_least(least: int) -> Check:
    return within(f"at least {least}", lambda value: value >= least)


def single(value: float) -> float:
    """A number as the optimiser computes with it, rounded to float32."""
    with np.errstate(all="ignore"):
        return float(np.float32(value))


POSITIVE = within("positive", lambda value: value > 0)
NOT_NEGATIVE = at_least(0)
FINITE = within("finite", lambda value: True)
SHARE = within("in [0, 1)", lambda value: 0 <= value < 1)
SINGLE = within("positive and finite in float32", lambda value: 0 < single(value) < math.inf)
SINGLE_SHARE = within("in [0, 1), in float32", lambda value: 0 <= single(value) < 1)
# JAX takes a larger seed as one of these.
SEED = within("below 2**32", lambda value: value < 2**32)
