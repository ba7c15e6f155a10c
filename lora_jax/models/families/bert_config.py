"""The settings of a published BERT or RoBERTa config.json, checked."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lora_jax.models.parts.config_checks import (
    check_activation,
    check_epsilon,
    check_heads,
    check_integer,
    check_known_tokens,
    check_layers,
    check_plain,
    check_positive,
    check_rate,
    family_defaults,
    settings,
    shown,
)

# model_type -> the defaults that differ from BERT's.
_FAMILIES: dict[str, dict[str, int]] = {
    "bert": {},
    "roberta": {"vocab_size": 50265, "pad_token_id": 1},
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes and rates of an encoder, with the names and defaults of transformers."""

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
        family_defaults(self.model_type, _FAMILIES)
        for name, value in dataclasses.asdict(self).items():
            _check(name, value)
        check_heads(self.hidden_size, self.num_attention_heads)
        if self.max_tokens < 1:
            raise ValueError(
                f"max_position_embeddings {self.max_position_embeddings} leaves a {self.model_type}"
                f" no position after pad_token_id {self.pad_token_id}"
            )

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "BertConfig":
        """Read the content of a published config.json.

        ValueError for another architecture, and for a feature that this encoder lacks: relative
        positions, a decoder, cross attention, pruned heads, quantised weights.
        """
        defaults = family_defaults(config.get("model_type"), _FAMILIES)
        positions = config.get("position_embedding_type", "absolute")
        if positions != "absolute":
            raise ValueError(
                f"position_embedding_type {shown(positions)} is not supported, only 'absolute'"
            )
        check_plain(config)
        names = {field.name for field in dataclasses.fields(cls)}
        given = settings(config, names, {"classifier_dropout": None})
        own = cls(**{**defaults, **given})
        check_known_tokens({"pad_token_id": config.get("pad_token_id")}, own.vocab_size)
        return own

    def to_json(self) -> dict[str, Any]:
        """This config as the content of a config.json."""
        return dataclasses.asdict(self)

    @property
    def head_dropout(self) -> float:
        """The dropout rate before the classifier: its own if the config has one, else hidden's."""
        own = self.classifier_dropout
        return self.hidden_dropout_prob if own is None else own

    def with_head_dropout(self, rate: float) -> "BertConfig":
        return dataclasses.replace(self, classifier_dropout=rate)

    @property
    def max_tokens(self) -> int:
        """The longest sequence; RoBERTa's positions start after the padding id."""
        offset = self.pad_token_id + 1 if self.model_type == "roberta" else 0
        return self.max_position_embeddings - offset


def _check(name: str, value: Any) -> None:
    """Check one setting: most sizes are positive integers, rates are in [0, 1)."""
    if name == "model_type" or (name == "classifier_dropout" and value is None):
        return
    if name == "hidden_act":
        check_activation(name, value)
    elif name.endswith(("_prob", "_dropout")):
        check_rate(name, value)
    elif name == "layer_norm_eps":
        check_epsilon(name, value)
    elif name == "initializer_range":
        check_positive(name, value)
    elif name == "num_hidden_layers":
        check_layers(name, value)
    else:
        check_integer(name, value, least=0 if name == "pad_token_id" else 1)
