"""The settings of a published GPT-2 config.json, checked."""

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
    check_token,
    settings,
    shown,
    token_ids,
)

# The meaning of null in a config.json; for any other setting, null is an error.
_NULLS = {"n_inner": 0, "bos_token_id": None, "eos_token_id": (), "pad_token_id": None}


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Sizes and rates of a decoder, with the names and defaults of transformers.

    An `n_inner` of 0 means four times `n_embd`. `eos_token_id` holds all ids that end a text.
    """

    model_type: str = "gpt2"
    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int = 0
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: tuple[int, ...] = (50256,)
    pad_token_id: int | None = None

    def __post_init__(self):
        _check_family(self.model_type)
        check_layers("n_layer", self.n_layer)
        for name in ("vocab_size", "n_positions", "n_embd", "n_head"):
            check_integer(name, getattr(self, name), least=1)
        check_integer("n_inner", self.n_inner, least=0)
        if self.n_inner == 0:
            object.__setattr__(self, "n_inner", 4 * self.n_embd)
            check_integer("n_inner", self.n_inner, least=1)
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            check_rate(name, getattr(self, name))
        check_epsilon("layer_norm_epsilon", self.layer_norm_epsilon)
        check_positive("initializer_range", self.initializer_range)
        for name in ("bos_token_id", "pad_token_id"):
            check_token(name, getattr(self, name))
        token_ids("eos_token_id", self.eos_token_id)
        check_activation("activation_function", self.activation_function)
        check_flag("tie_word_embeddings", self.tie_word_embeddings)
        check_heads(self.n_embd, self.n_head)

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "GPT2Config":
        """Read the content of a published config.json.

        ValueError for another architecture, and for a feature that this decoder lacks: another
        scaling of scores, cross attention, pruned heads, quantised weights.
        """
        _check_family(config.get("model_type"))
        check_plain(config, "decoders")
        for feature, only in (
            ("scale_attn_weights", True),
            ("scale_attn_by_inverse_layer_idx", False),
        ):
            if config.get(feature, only) != only:
                raise ValueError(
                    f"{feature} {shown(config[feature])} is not supported, only {only}"
                )
        names = {field.name for field in dataclasses.fields(cls)}
        given = settings(config, names, _NULLS)
        if "eos_token_id" in given:
            given["eos_token_id"] = token_ids("eos_token_id", given["eos_token_id"])
        own = cls(**given)
        check_known_tokens(config, own.vocab_size)
        return own

    def to_json(self) -> dict[str, Any]:
        """This config as the content of a config.json."""
        eos = list(self.eos_token_id)
        return {
            **dataclasses.asdict(self),
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        }

    # The properties that every decoder's config must have.

    @property
    def hidden_size(self) -> int:
        return self.n_embd

    @property
    def num_hidden_layers(self) -> int:
        return self.n_layer

    @property
    def num_key_value_heads(self) -> int:
        return self.n_head

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def sliding_window(self) -> None:
        return None

    @property
    def slides(self) -> tuple[bool, ...]:
        """Whether each layer sees only a window: none does."""
        return (False,) * self.n_layer

    @property
    def max_tokens(self) -> int:
        """The longest sequence: the number of position embeddings."""
        return self.n_positions


def _check_family(model_type: Any) -> None:
    if model_type != "gpt2":
        raise ValueError(f"model_type {shown(model_type)} is not supported; supported: gpt2")
