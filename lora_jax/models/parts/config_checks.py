"""Checks of every family's config.json: sizes, rates, activations, and unsupported features."""

import reprlib
from collections.abc import Collection, Mapping
from typing import Any, Literal

from lora_jax.models.parts.modules import ACTIVATIONS

MOST_LAYERS = 10_000
"""Far more than any model has. It limits lists of layers, which are made before weights load."""
MOST = 2**31 - 1
"""The limit of any other size: no axis of an array and no token id is larger."""
_LEAST_EPSILON, _MOST_EPSILON = 1e-30, 0.1  # float32 holds the least; more than 0.1 is a mistake

_NEVER = ("add_cross_attention", "pruned_heads", "quantization_config")
_NOT_OF = {"encoders": ("is_decoder", *_NEVER), "decoders": ("is_encoder_decoder", *_NEVER)}


def check_plain(
    config: Mapping[str, Any], kind: Literal["encoders", "decoders"] = "encoders"
) -> None:
    """Raise a ValueError for unsupported features, such as pruned heads or quantised weights."""
    for feature in _NOT_OF[kind]:
        if config.get(feature):
            raise ValueError(
                f"{feature}={shown(config[feature])} is not supported: plain {kind} only"
            )


def settings(
    config: Mapping[str, Any], names: Collection[str], nulls: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings in `names` that a config.json has.

    Args:
      nulls: the meaning of null, for the settings that may be null.

    Raises:
      ValueError: another setting is null.
    """
    found = {name: each for name, each in config.items() if name in names}
    for name, each in found.items():
        if each is None and name not in nulls:
            raise ValueError(f"{name} is null: give it a value, or leave it out for the default")
    return {name: nulls[name] if each is None else each for name, each in found.items()}


def check_heads(hidden_size: int, num_attention_heads: int) -> None:
    if hidden_size % num_attention_heads:
        raise ValueError(
            f"hidden_size {hidden_size} is not a multiple of "
            f"num_attention_heads {num_attention_heads}"
        )


def check_activation(name: str, value: Any) -> None:
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ValueError(
            f"{name} {shown(value)} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )


def check_rate(name: str, value: Any) -> None:
    """Check a dropout rate."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {shown(value)}")


def check_positive(name: str, value: Any) -> None:
    """Check a positive number that float32 holds as neither zero nor infinity."""
    if not _is_number(value) or not value > 0:
        raise ValueError(f"{name} must be a positive number, got {shown(value)}")
    if not 1e-37 < value < 1e38:
        raise ValueError(f"{name} must be a number that float32 holds, got {shown(value)}")


def check_epsilon(name: str, value: Any) -> None:
    """Check the number that a norm adds to a variance before dividing by its root."""
    check_positive(name, value)
    if not _LEAST_EPSILON <= value <= _MOST_EPSILON:
        raise ValueError(
            f"{name} must be from {_LEAST_EPSILON} to {_MOST_EPSILON}, got {shown(value)}"
        )


def check_integer(name: str, value: Any, least: int, most: int = MOST) -> None:
    if not isinstance(value, int) or not _is_number(value) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {shown(value)}")
    if value > most:
        raise ValueError(f"{name} must be an integer <= {most:,}, got {shown(value)}")


def check_layers(name: str, value: Any) -> None:
    check_integer(name, value, least=1, most=MOST_LAYERS)


def check_known_tokens(config: Mapping[str, Any], vocab_size: int) -> None:
    """Raise a ValueError for a special token's id that is outside the vocabulary."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if beyond := [each for each in token_ids(name, config.get(name)) if each >= vocab_size]:
            raise ValueError(
                f"{name} {beyond[0]} is not in the vocabulary, whose vocab_size is {vocab_size}"
            )


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {shown(value)}")


def check_token(name: str, value: Any) -> None:
    """Check one token id, or None (null)."""
    if value is not None:
        check_integer(name, value, least=0)


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """Check one token id, several or None (null), and return them as a tuple."""
    ids = tuple(value) if isinstance(value, list | tuple) else () if value is None else (value,)
    for each in ids:
        check_integer(name, each, least=0)
    return ids


def family_defaults(
    model_type: Any, families: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any]:
    """The defaults of a `model_type`, from those of all that are supported."""
    if not isinstance(model_type, str) or model_type not in families:
        raise ValueError(
            f"model_type {shown(model_type)} is not supported; supported: {', '.join(families)}"
        )
    return families[model_type]


def shown(value: Any) -> str:
    """A value for an error message, shortened: a file may hold a value of any length."""
    return reprlib.repr(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
