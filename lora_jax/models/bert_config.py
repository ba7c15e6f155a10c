"""What a published BERT or RoBERTa config.json says, checked."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
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
}

# model_type -> where its defaults differ from BERT's.
_FAMILIES: dict[str, dict[str, int]] = {
    "bert": {},
    "roberta": {"vocab_size": 50265, "pad_token_id": 1},
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes and rates of an encoder, under the names and with the defaults of transformers."""

    model_type: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    pad_token_id: int = 0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None

    def __post_init__(self):
        _family_defaults(self.model_type)
        for name, value in dataclasses.asdict(self).items():
            _check(name, value)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"hidden_act {self.hidden_act!r} is not supported; "
                f"supported: {', '.join(ACTIVATIONS)}"
            )

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "BertConfig":
        """Reads the content of a published config.json.

        ValueError for another architecture, and for a feature that this encoder lacks: relative
        positions, a decoder, cross attention, pruned heads, quantised weights.
        """
        defaults = _family_defaults(config.get("model_type"))
        positions = config.get("position_embedding_type", "absolute")
        if positions != "absolute":
            raise ValueError(
                f"position_embedding_type {positions!r} is not supported, only 'absolute'"
            )
        for feature in ("is_decoder", "add_cross_attention", "pruned_heads", "quantization_config"):
            if config.get(feature):
                raise ValueError(
                    f"{feature}={config[feature]!r} is not supported: plain encoders only"
                )
        names = {field.name for field in dataclasses.fields(cls)}
        given = {k: v for k, v in config.items() if k in names and v is not None}
        return cls(**{**defaults, **given})

    def to_json(self) -> dict[str, Any]:
        """The same as a config.json holds it."""
        return dataclasses.asdict(self)

    @property
    def head_dropout(self) -> float:
        """Dropout before the classifier: its own rate where the config has one."""
        own = self.classifier_dropout
        return self.hidden_dropout_prob if own is None else own

    @property
    def max_tokens(self) -> int:
        """The longest sequence; RoBERTa's positions start after the padding id."""
        offset = self.pad_token_id + 1 if self.model_type == "roberta" else 0
        return self.max_position_embeddings - offset


def _family_defaults(model_type: str | None) -> dict[str, int]:
    if model_type not in _FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} is not supported; supported: {', '.join(_FAMILIES)}"
        )
    return _FAMILIES[model_type]


def _check(name: str, value: Any) -> None:
    """Sizes are positive integers, rates are in [0, 1)."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in ("model_type", "hidden_act") or (name == "classifier_dropout" and value is None):
        return
    if name.endswith(("_prob", "_dropout")):
        valid, expected = number and 0 <= value < 1, "a number in [0, 1)"
    elif name in ("layer_norm_eps", "initializer_range"):
        valid, expected = number and value > 0, "a positive number"
    else:
        least = 0 if name == "pad_token_id" else 1
        valid, expected = (
            isinstance(value, int) and number and value >= least,
            f"an integer >= {least}",
        )
    if not valid:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
