"""The checked settings of a Llama family's published config.json: Llama, Mistral, Qwen 2 and 3."""

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
    family_defaults,
    settings,
    shown,
    token_ids,
)
from lora_jax.models.parts.rope import Rope

FULL, SLIDING = "full_attention", "sliding_attention"

_QWEN: dict[str, Any] = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "bos_token_id": None,
    "eos_token_id": (),
}
# model_type -> the defaults that differ from Llama's.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
}
# The meaning of null in a config.json; for any other setting, null is an error.
_NULLS = {
    "num_key_value_heads": 0,
    "head_dim": 0,
    "sliding_window": None,
    "layer_types": (),
    "bos_token_id": None,
    "eos_token_id": (),
    "pad_token_id": None,
}


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and settings of a decoder, with the names and defaults of transformers.

    A `num_key_value_heads` of 0 means as many as query heads; a `head_dim` of 0 means hidden_size /
    num_attention_heads. `layer_types` says for each layer whether a token attends to all earlier
    tokens or to the last `sliding_window` tokens, itself included. If empty, it follows from the
    model type, `sliding_window` and, for Qwen, `max_window_layers`. `eos_token_id` holds all ids
    that end a text.
    """

    model_type: str = "llama"
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 0
    head_dim: int = 0
    max_position_embeddings: int = 2048
    rope: Rope = dataclasses.field(default_factory=Rope)
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    attention_dropout: float = 0.0
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = None
    max_window_layers: int = 28
    layer_types: tuple[str, ...] = ()
    bos_token_id: int | None = 1
    eos_token_id: tuple[int, ...] = (2,)
    pad_token_id: int | None = None

    def __post_init__(self):
        family_defaults(self.model_type, _FAMILIES)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"):
            check_integer(name, getattr(self, name), least=1)
        check_layers("num_hidden_layers", self.num_hidden_layers)
        check_integer("num_attention_heads", self.num_attention_heads, least=1)
        for name in ("num_key_value_heads", "head_dim", "max_window_layers"):
            check_integer(name, getattr(self, name), least=0)
        for name in ("bos_token_id", "pad_token_id"):
            check_token(name, getattr(self, name))
        token_ids("eos_token_id", self.eos_token_id)
        check_epsilon("rms_norm_eps", self.rms_norm_eps)
        check_positive("initializer_range", self.initializer_range)
        for name in ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window"):
            check_flag(name, getattr(self, name))
        check_activation("hidden_act", self.hidden_act)
        check_rate("attention_dropout", self.attention_dropout)
        self._settle_heads()
        self._settle_windows()

    def _settle_heads(self) -> None:
        if self.head_dim == 0:
            check_heads(self.hidden_size, self.num_attention_heads)
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim must be even, as rope turns its halves, got {self.head_dim}"
            )
        if self.num_key_value_heads == 0:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )

    def _settle_windows(self) -> None:
        qwen = self.model_type.startswith("qwen")
        if self.model_type == "llama" or (qwen and not self.use_sliding_window):
            object.__setattr__(self, "sliding_window", None)
        if self.sliding_window is not None:
            check_integer("sliding_window", self.sliding_window, least=1)
        first = self.max_window_layers if qwen else 0
        count, windowed = self.num_hidden_layers, self.sliding_window is not None
        own = tuple(SLIDING if windowed and i >= first else FULL for i in range(count))
        given = tuple(self.layer_types) or own
        if len(given) != count:
            raise ValueError(f"layer_types names {len(given)} layers, there are {count}")
        if unknown := [each for each in given if each not in (FULL, SLIDING)]:
            raise ValueError(
                f"layer_types {shown(unknown[0])} is not supported; supported: {FULL}, {SLIDING}"
            )
        if SLIDING in given and self.sliding_window is None:
            raise ValueError(f"layer_types has {SLIDING} layers, but there is no sliding_window")
        if not qwen and given != own:
            raise ValueError(f"layer_types of a {self.model_type} must all be {own[0]}")
        object.__setattr__(self, "layer_types", given)

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "LlamaConfig":
        """Read the content of a published config.json.

        ValueError for another architecture, and for a feature that this decoder lacks: another
        rotary scaling, cross attention, pruned heads, quantised weights.
        """
        defaults = family_defaults(config.get("model_type"), _FAMILIES)
        check_plain(config, "decoders")
        names = {field.name for field in dataclasses.fields(cls)} - {"rope"}
        given = settings(config, names, _NULLS)
        if "eos_token_id" in given:
            given["eos_token_id"] = token_ids("eos_token_id", given["eos_token_id"])
        if "layer_types" in given:
            given["layer_types"] = _words("layer_types", given["layer_types"])
        own = cls(**{**defaults, **given})
        check_known_tokens(config, own.vocab_size)
        return dataclasses.replace(own, rope=Rope.from_json(config, own.max_position_embeddings))

    def to_json(self) -> dict[str, Any]:
        """This config as the content of a config.json."""
        content = dataclasses.asdict(self)
        del content["rope"]
        eos = list(self.eos_token_id)
        content["eos_token_id"] = eos[0] if len(eos) == 1 else eos or None
        if self.model_type.startswith("qwen"):
            content["layer_types"] = list(self.layer_types)
        else:  # transformers takes a Mistral with layer types for another model
            del content["layer_types"]
        return content | self.rope.to_json()

    @property
    def slides(self) -> tuple[bool, ...]:
        """Whether each layer sees only the last `sliding_window` tokens."""
        return tuple(each == SLIDING for each in self.layer_types)

    @property
    def max_tokens(self) -> int:
        """The longest sequence; unlimited except with `dynamic` scaling (see `Rope`)."""
        dynamic = self.rope.rope_type == "dynamic"
        return self.max_position_embeddings if dynamic else 2**31 - 1

    @property
    def input_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.model_type == "qwen2" or self.output_bias

    @property
    def output_bias(self) -> bool:
        """Whether attention's output has a bias."""
        return self.attention_bias and self.model_type in ("llama", "qwen3")

    @property
    def feed_forward_bias(self) -> bool:
        return self.mlp_bias and self.model_type == "llama"

    @property
    def norms_heads(self) -> bool:
        """Whether queries and keys are normalised, head by head, before they are rotated."""
        return self.model_type == "qwen3"


def _words(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{name} must be a list of words, got {shown(value)}")
    return tuple(value)
