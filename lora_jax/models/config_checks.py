"""What the config.json of every family is held to: sizes, rates, activations, plain models."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

_tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)

# transformers' names. "gelu" is exact (erf), the others of that name are its tanh approximation.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


_NEVER = ("add_cross_attention", "pruned_heads", "quantization_config")
_NOT_OF = {"encoders": ("is_decoder", *_NEVER), "decoders": ("is_encoder_decoder", *_NEVER)}


def check_plain(
    config: Mapping[str, Any], kind: Literal["encoders", "decoders"] = "encoders"
) -> None:
    """ValueError for what no model here has: the other half, pruned heads, quantised weights."""
    for feature in _NOT_OF[kind]:
        if config.get(feature):
            raise ValueError(f"{feature}={config[feature]!r} is not supported: plain {kind} only")


def check_heads(hidden_size: int, num_attention_heads: int) -> None:
    if hidden_size % num_attention_heads:
        raise ValueError(
            f"hidden_size {hidden_size} is not a multiple of "
            f"num_attention_heads {num_attention_heads}"
        )


def check_activation(name: str, value: Any) -> None:
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ValueError(f"{name} {value!r} is not supported; supported: {', '.join(ACTIVATIONS)}")


def check_rate(name: str, value: Any) -> None:
    """A share of what dropout zeroes."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")


def check_positive(name: str, value: Any) -> None:
    if not _is_number(value) or not value > 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}")


def check_integer(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or not _is_number(value) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """One token id, several or none (null), as a tuple."""
    ids = tuple(value) if isinstance(value, list | tuple) else () if value is None else (value,)
    for each in ids:
        check_integer(name, each, least=0)
    return ids


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
