"""Llama 2 and 3, and models that compute in the same way (TinyLlama, SmolLM2), in Flax NNX.

The layers are stacked along a leading axis, and scanned or unrolled as those of bert.py. Every
kernel is a plain (in, out) matrix, (layers, in, out) when stacked; outputs are split into heads
only after the product. The parameters' paths:

    embedding/embedding
    layers/attention_norm/scale    layers/attention/{query,key,value,output}/kernel
    layers/mlp_norm/scale          layers/{gate,up,down}/kernel
    norm/scale                     head/kernel  (unless tied to the embedding)

Touvron et al., 2023 (arXiv:2307.09288).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from lora_jax.files.gguf_file import GgufFile
from lora_jax.models.parts.config_checks import (
    DecoderConfig,
    activation,
    check_heads,
    epsilon,
    flag,
    integer,
    layer_count,
    positive,
    rate,
    shown,
    token,
    tokens,
    words,
)
from lora_jax.models.parts.decoder import Decoder, DecoderLayer
from lora_jax.models.parts.family import Family, Gguf
from lora_jax.models.parts.modules import ACTIVATIONS, Linear, RMSNorm
from lora_jax.models.parts.rope import Rope, Rotation, rotate, rotation

FULL, SLIDING = "full_attention", "sliding_attention"


def _words(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list of words, got {shown(value)}")
    return tuple(value)


class Biases(NamedTuple):
    """Which linear layers have biases."""

    inputs: bool
    """Queries, keys and values."""
    output: bool
    """Attention's output."""
    feed_forward: bool


@dataclasses.dataclass(frozen=True)
class LlamaConfig(DecoderConfig):
    """Sizes and settings of a decoder, with the names and defaults of transformers.

    A `num_key_value_heads` of 0 means as many as query heads; a `head_dim` of 0 means hidden_size /
    num_attention_heads. `layer_types` says for each layer whether a token attends to all earlier
    tokens or to the last `sliding_window` tokens, itself included. If empty, it follows from the
    other settings: no layer of a Llama slides. `eos_token_id` holds all ids that end a text.
    """

    model_type: str = "llama"
    vocab_size: int = integer(32000)
    hidden_size: int = integer(4096)
    intermediate_size: int = integer(11008)
    num_hidden_layers: int = layer_count(32)
    num_attention_heads: int = integer(32)
    num_key_value_heads: int = integer(0, least=0, null=0)
    head_dim: int = integer(0, least=0, null=0)
    max_position_embeddings: int = integer(2048)
    rope: Rope = dataclasses.field(default_factory=Rope)
    hidden_act: str = activation("silu")
    rms_norm_eps: float = epsilon(1e-6)
    initializer_range: float = positive(0.02)
    attention_dropout: float = rate(0.0)
    attention_bias: bool = flag(False)
    mlp_bias: bool = flag(False)
    tie_word_embeddings: bool = flag(False)
    use_sliding_window: bool = flag(False)
    sliding_window: int | None = integer(None, null=None)
    max_window_layers: int = integer(28, least=0)
    layer_types: tuple[str, ...] = words((FULL, SLIDING), read=_words)
    bos_token_id: int | None = token(1)
    eos_token_id: tuple[int, ...] = tokens((2,))
    pad_token_id: int | None = token(None)

    mixes_layers: ClassVar[bool] = False
    """Whether `layer_types` may be other than what follows from the other settings."""

    def __post_init__(self):
        self.settle("sliding_window", self.used_window())
        super().__post_init__()
        if self.head_dim == 0:
            check_heads(self.hidden_size, self.num_attention_heads)
            self.settle("head_dim", self.hidden_size // self.num_attention_heads)
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim must be even, as rope turns its halves, got {self.head_dim}"
            )
        self.settle("num_key_value_heads", self.num_key_value_heads or self.num_attention_heads)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        self._settle_layer_types()

    def used_window(self) -> int | None:
        """The window of sliding layers, from the given settings; None if no layer slides."""
        return None

    @property
    def first_sliding(self) -> int:
        """The first layer that slides, if there is a window."""
        return 0

    def _settle_layer_types(self) -> None:
        count, windowed = self.num_hidden_layers, self.sliding_window is not None
        own = tuple(SLIDING if windowed and i >= self.first_sliding else FULL for i in range(count))
        given = self.layer_types or own
        if len(given) != count:
            raise ValueError(f"layer_types names {len(given)} layers, there are {count}")
        if SLIDING in given and not windowed:
            raise ValueError(f"layer_types has {SLIDING} layers, but there is no sliding_window")
        if not self.mixes_layers and given != own:
            raise ValueError(f"layer_types of a {self.model_type} must all be {own[0]}")
        self.settle("layer_types", given)

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        own = super().from_json(config)
        return dataclasses.replace(own, rope=Rope.from_json(config, own.max_position_embeddings))

    def to_json(self) -> dict[str, Any]:
        content = super().to_json()
        del content["rope"]
        if self.mixes_layers:
            content["layer_types"] = list(self.layer_types)
        else:  # transformers takes a Mistral with layer types for another model
            del content["layer_types"]
        return content | self.rope.to_json()

    @classmethod
    def from_gguf(cls, file: GgufFile) -> Self:
        kind = file.value("general.architecture")

        def of(key: str, *default: Any) -> Any:
            return file.number(f"{kind}.{key}", *default)

        if of("expert_count", 0):
            raise ValueError("mixtures of experts are not supported: plain decoders only")
        heads, width = of("attention.head_count"), of("embedding_length")
        groups, inner = of("attention.head_count_kv", heads), of("feed_forward_length")
        for key, value in (("head_count", heads), ("head_count_kv", groups), ("length", inner)):
            if isinstance(value, list):
                raise ValueError(
                    f"layers of different sizes ({key}: {shown(value)}) are not supported"
                )
        turning = of("rope.dimension_count", 0)
        head_dim = of("attention.key_length", turning)
        for key, value in (
            ("attention.value_length", head_dim),
            ("rope.dimension_count", head_dim),
        ):
            if of(key, value) != value:
                raise ValueError(
                    f"{key} {shown(of(key))} is not supported, only the keys' length {shown(value)}"
                )
        window = of("attention.sliding_window", None) or None
        own = cls(
            hidden_size=width,
            intermediate_size=inner,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=head_dim,
            num_hidden_layers=of("block_count"),
            max_position_embeddings=of("context_length"),
            rms_norm_eps=of("attention.layer_norm_rms_epsilon"),
            attention_bias="blk.0.attn_output.bias" in file,
            mlp_bias="blk.0.ffn_up.bias" in file,
            sliding_window=window,
            **cls.words_of_gguf(file),
        )
        if own.sliding_window != window:
            raise ValueError(f"attention.sliding_window of a {kind} is not supported")
        rope = Rope.from_gguf(file, own.head_dim, own.max_position_embeddings)
        return dataclasses.replace(own, rope=rope)

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
    def biases(self) -> Biases:
        return Biases(self.attention_bias, self.attention_bias, self.mlp_bias)


class Attention(nnx.Module):
    """The projections of grouped-query attention."""

    def __init__(self, config: LlamaConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        linear = functools.partial(Linear, std=config.initializer_range, dtype=dtype, rngs=rngs)
        width, head = config.hidden_size, config.head_dim
        heads, groups = config.num_attention_heads * head, config.num_key_value_heads * head
        self.query = linear(width, heads, use_bias=config.biases.inputs)
        self.key = linear(width, groups, use_bias=config.biases.inputs)
        self.value = linear(width, groups, use_bias=config.biases.inputs)
        self.output = linear(heads, width, use_bias=config.biases.output)
        self.config = config

    def project(self, x: Array, rotation: Rotation) -> tuple[Array, Array, Array]:
        """Queries (B, T, heads, head_dim), and keys and values (B, T, groups, head_dim).

        Queries and keys are rotated by their positions.
        """

        query, key, value = self.heads(x)
        return rotate(query, rotation), rotate(key, rotation), value

    def heads(self, x: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values as for `project`, before any is rotated."""

        def split(y: Array) -> Array:
            return y.reshape(*y.shape[:-1], -1, self.config.head_dim)

        return split(self.query(x)), split(self.key(x)), split(self.value(x))


class Layer(DecoderLayer):
    """Attention and a gated feed-forward part (SwiGLU: Shazeer, 2020, arXiv:2002.05202)."""

    attention_type: ClassVar[type[Attention]] = Attention
    residual_dropout = 0.0

    def __init__(self, config: LlamaConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        linear = functools.partial(
            Linear,
            std=config.initializer_range,
            dtype=dtype,
            rngs=rngs,
            use_bias=config.biases.feed_forward,
        )
        self.attention_norm = RMSNorm(width, config.rms_norm_eps, dtype)
        self.attention = self.attention_type(config, dtype, rngs)
        self.mlp_norm = RMSNorm(width, config.rms_norm_eps, dtype)
        self.gate, self.up = linear(width, inner), linear(width, inner)
        self.down = linear(inner, width)
        self.attention_dropout = config.attention_dropout
        self.config = config

    def feed_forward(self, x: Array) -> Array:
        activation = ACTIVATIONS[self.config.hidden_act]
        # The backward pass keeps the two halves, and none of what lies between them and `inner`.
        gated = jax.checkpoint(lambda gate, up: activation(gate) * up)
        inner = gated(self.gate(x), self.up(x))
        return self.down(self.activations.within(inner))


class Llama(Decoder):
    """A Llama (see `Decoder`)."""

    layer_type = Layer

    def make_norm(self, config: LlamaConfig, dtype: DTypeLike) -> nnx.Module:
        return RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)

    def rotation(self, positions: Array, dtype: DTypeLike) -> Rotation:
        return rotation(self.config.rope, self.config.head_dim, positions, dtype)


GGUF = Gguf(
    architecture="llama",
    names={
        "embedding": "token_embd",
        "layers/attention_norm": "blk.{}.attn_norm",
        "layers/attention/query": "blk.{}.attn_q",
        "layers/attention/key": "blk.{}.attn_k",
        "layers/attention/value": "blk.{}.attn_v",
        "layers/attention/output": "blk.{}.attn_output",
        "layers/mlp_norm": "blk.{}.ffn_norm",
        "layers/gate": "blk.{}.ffn_gate",
        "layers/up": "blk.{}.ffn_up",
        "layers/down": "blk.{}.ffn_down",
        "norm": "output_norm",
        "head": "output",
    },
    turns_neighbours=True,
)
FAMILY = Family(
    config=LlamaConfig,
    model=Llama,
    architecture="LlamaForCausalLM",
    prefix="model.",
    names={
        "embedding": "embed_tokens",
        "layers/attention_norm": "layers.{}.input_layernorm",
        "layers/attention/query": "layers.{}.self_attn.q_proj",
        "layers/attention/key": "layers.{}.self_attn.k_proj",
        "layers/attention/value": "layers.{}.self_attn.v_proj",
        "layers/attention/output": "layers.{}.self_attn.o_proj",
        "layers/mlp_norm": "layers.{}.post_attention_layernorm",
        "layers/gate": "layers.{}.mlp.gate_proj",
        "layers/up": "layers.{}.mlp.up_proj",
        "layers/down": "layers.{}.mlp.down_proj",
        "norm": "norm",
    },
    head={"head": "lm_head"},
    buffers=("rotary_emb.inv_freq",),
    gguf=GGUF,
)
