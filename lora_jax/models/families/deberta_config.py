"""The settings of a published DeBERTa v2 or v3 config.json, checked."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lora_jax.models.parts.config_checks import (
    check_activation,
    check_epsilon,
    check_flag,
    check_heads,
    check_integer,
    check_known_tokens,
    check_layers,
    check_plain,
    check_positive,
    check_rate,
    settings,
    shown,
)

_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout")
_ACTIVATIONS = ("hidden_act", "pooler_hidden_act", "conv_act")
_SIZES = (
    "vocab_size",
    "hidden_size",
    "embedding_size",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "conv_groups",
)
_FLAGS = ("relative_attention", "share_att_key", "position_biased_input")
_KINDS = ("c2p", "p2c")


@dataclasses.dataclass(frozen=True)
class DebertaConfig:
    """Sizes and rates of an encoder, with the names and defaults of transformers.

    A value of 0 means: the hidden size for `embedding_size`, no convolution for `conv_kernel_size`,
    no token types for `type_vocab_size`. A value of -1 means: the number of positions for
    `max_relative_positions`, one relative embedding per distance for `position_buckets`.
    """

    model_type: str = "deberta-v2"
    vocab_size: int = 128100
    hidden_size: int = 1536
    embedding_size: int = 0
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    pad_token_id: int = 0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-7
    initializer_range: float = 0.02
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    pooler_dropout: float = 0.0
    pooler_hidden_act: str = "gelu"
    cls_dropout: float | None = None
    relative_attention: bool = False
    pos_att_type: tuple[str, ...] = ()
    share_att_key: bool = False
    max_relative_positions: int = -1
    position_buckets: int = -1
    norm_rel_ebd: str = "none"
    position_biased_input: bool = True
    conv_kernel_size: int = 0
    conv_act: str = "tanh"
    conv_groups: int = 1

    def __post_init__(self):
        _check_family(self.model_type)
        if self.embedding_size == 0:
            object.__setattr__(self, "embedding_size", self.hidden_size)
        for name in _SIZES:
            check_integer(name, getattr(self, name), least=1)
        for name in ("type_vocab_size", "pad_token_id", "conv_kernel_size"):
            check_integer(name, getattr(self, name), least=0)
        for name in ("max_relative_positions", "position_buckets"):
            check_integer(name, getattr(self, name), least=-1)
        check_layers("num_hidden_layers", self.num_hidden_layers)
        check_epsilon("layer_norm_eps", self.layer_norm_eps)
        check_positive("initializer_range", self.initializer_range)
        for name in _RATES if self.cls_dropout is None else (*_RATES, "cls_dropout"):
            check_rate(name, getattr(self, name))
        for name in _ACTIVATIONS:
            check_activation(name, getattr(self, name))
        for name in _FLAGS:
            check_flag(name, getattr(self, name))
        check_heads(self.hidden_size, self.num_attention_heads)
        self._check_attention()
        self._check_convolution()

    def _check_attention(self) -> None:
        if unknown := [kind for kind in self.pos_att_type if kind not in _KINDS]:
            raise ValueError(
                f"pos_att_type {shown(unknown[0])} is not supported; supported: {', '.join(_KINDS)}"
            )
        if self.norm_rel_ebd not in ("none", "layer_norm"):
            raise ValueError(
                f"norm_rel_ebd {shown(self.norm_rel_ebd)} is not supported; "
                "supported: none, layer_norm"
            )
        # Half of the buckets are for single distances; the other half must reach the farthest one.
        middle = self.position_buckets // 2
        if self.position_buckets > 0 and not 1 <= middle < self.relative_positions - 1:
            raise ValueError(
                f"position_buckets {self.position_buckets} must be at least 2 and leave room for "
                f"distances of up to {self.relative_positions}"
            )

    def _check_convolution(self) -> None:
        if self.conv_kernel_size and self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size must be odd, got {self.conv_kernel_size}")
        if self.hidden_size % self.conv_groups:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"conv_groups {self.conv_groups}"
            )

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "DebertaConfig":
        """Read the content of a published config.json.

        ValueError for another architecture, and for a feature that this encoder lacks: heads or a
        pooler whose width does not follow from the hidden size, a decoder, pruned heads, quantised
        weights.
        """
        _check_family(config.get("model_type"))
        check_plain(config)
        names = {field.name for field in dataclasses.fields(cls)}
        given = settings(config, names, {"cls_dropout": None, "pos_att_type": ()})
        for name in ("pos_att_type", "norm_rel_ebd"):
            if name in given:
                given[name] = _words(name, given[name])
        if "norm_rel_ebd" in given:
            given["norm_rel_ebd"] = "|".join(given["norm_rel_ebd"])
        own = cls(**given)
        check_known_tokens({"pad_token_id": config.get("pad_token_id")}, own.vocab_size)
        for name, only in (
            ("attention_head_size", own.hidden_size // own.num_attention_heads),
            ("pooler_hidden_size", own.hidden_size),
        ):
            if config.get(name) not in (None, only):
                raise ValueError(f"{name} {shown(config[name])} is not supported, only {only}")
        return own

    def to_json(self) -> dict[str, Any]:
        """This config as the content of a config.json."""
        return {**dataclasses.asdict(self), "pos_att_type": list(self.pos_att_type)}

    @property
    def head_dropout(self) -> float:
        """The dropout rate before the classifier: its own if the config has one, else hidden's."""
        return self.hidden_dropout_prob if self.cls_dropout is None else self.cls_dropout

    def with_head_dropout(self, rate: float) -> "DebertaConfig":
        return dataclasses.replace(self, cls_dropout=rate)

    @property
    def max_tokens(self) -> int:
        """The longest sequence; unlimited without absolute positions, as relative ones saturate."""
        return self.max_position_embeddings if self.position_biased_input else 2**31 - 1

    @property
    def relative_positions(self) -> int:
        """The distance at which relative positions saturate, in tokens."""
        given = self.max_relative_positions
        return given if given > 0 else self.max_position_embeddings

    @property
    def span(self) -> int:
        """Half the number of relative embeddings: those for one direction."""
        return self.position_buckets if self.position_buckets > 0 else self.relative_positions


def _check_family(model_type: str | None) -> None:
    if model_type != "deberta-v2":
        raise ValueError(f"model_type {shown(model_type)} is not supported; supported: deberta-v2")


def _words(name: str, value: Any) -> tuple[str, ...]:
    """The words of a list, or of one string with bars between them, in lower case."""
    parts = value.split("|") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise ValueError(f"{name} must be words, got {shown(value)}")
    words = (str(part).strip().lower() for part in parts)
    return tuple(dict.fromkeys(word for word in words if word))
