"""Checks of settings that several methods have; each raises a `ValueError` of one line."""

import math

MOST = 2**31 - 1
"""The largest rank: XLA counts in 32 bits, and files may say anything."""


def require_rank(rank: object) -> None:
    require_count("rank", rank)
    if isinstance(rank, int) and rank > MOST:
        raise ValueError(f"rank must be at most {MOST:,}")


def require_fit(name: str, rank: int, shape: tuple[int, int]) -> None:
    if rank > min(shape):
        raise ValueError(f"{name} {rank} exceeds min(in, out) = {min(shape)} of {shape}")


def require_count(name: str, value: object, least: int = 1) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def require_finite(name: str, value: object) -> None:
    try:
        fits = isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        raise ValueError(f"{name} must be a finite number, got one of too many digits") from None
    if not fits:
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def require_nonzero(name: str, value: object) -> None:
    """Of what a method starts at: at 0, no gradient would ever move anything."""
    require_finite(name, value)
    if value == 0:
        raise ValueError(f"{name} must not be 0: nothing would train")


def require_ratio(ratio: object) -> None:
    if not isinstance(ratio, int | float) or not 0.0 <= ratio < math.inf:
        raise ValueError(f"learning_rate_ratio must be finite and at least 0, got {ratio!r}")


def require_dropout(dropout: object) -> None:
    if not isinstance(dropout, int | float) or not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
