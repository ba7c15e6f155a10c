"""GPT-2 in Flax NNX, with its layers stacked along a leading axis and scanned (see llama.py).

The published weights join the projections of queries, keys and values in one matrix of three times
the width. Here they are three matrices, split when read and joined when written. The reason: the
LoRA paper adapts only queries and values (Hu et al., 2021, arXiv:2106.09685, section 4.2), and a
low-rank update of the joined matrix is a different method. The parameters' paths:

    embedding/embedding    position/embedding
    layers/attention_norm/{scale,bias}    layers/attention/{query,key,value,output}/{kernel,bias}
    layers/mlp_norm/{scale,bias}          layers/{up,down}/{kernel,bias}
    norm/{scale,bias}                     head/kernel  (unless tied to the embedding)

Radford et al., 2019, "Language Models are Unsupervised Multitask Learners".
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from lora_jax.files.gguf_file import GgufFile
from lora_jax.models.parts.config_checks import (
    DecoderConfig,
    activation,
    check_heads,
    check_integer,
    epsilon,
    flag,
    integer,
    layer_count,
    positive,
    rate,
    shown,
    token,
    tokens,
)
from lora_jax.models.parts.decoder import Decoder, DecoderLayer
from lora_jax.models.parts.family import Family, Gguf
from lora_jax.models.parts.modules import ACTIVATIONS, Embedding, LayerNorm, Linear, dropout


@dataclasses.dataclass(frozen=True)
class GPT2Config(DecoderConfig):
    """Sizes and rates of a decoder, with the names and defaults of transformers.

    An `n_inner` of 0 means four times `n_embd`. `eos_token_id` holds all ids that end a text.
    """

    model_type: str = "gpt2"
    vocab_size: int = integer(50257)
    n_positions: int = integer(1024)
    n_embd: int = integer(768)
    n_layer: int = layer_count(12)
    n_head: int = integer(12)
    n_inner: int = integer(0, least=0, null=0)
    activation_function: str = activation("gelu_new")
    resid_pdrop: float = rate(0.1)
    embd_pdrop: float = rate(0.1)
    attn_pdrop: float = rate(0.1)
    layer_norm_epsilon: float = epsilon(1e-5)
    initializer_range: float = positive(0.02)
    tie_word_embeddings: bool = flag(True)
    bos_token_id: int | None = token(50256)
    eos_token_id: tuple[int, ...] = tokens((50256,))
    pad_token_id: int | None = token(None)

    def __post_init__(self):
        super().__post_init__()
        self.settle("n_inner", self.n_inner or 4 * self.n_embd)
        check_integer("n_inner", self.n_inner, least=1)
        check_heads(self.n_embd, self.n_head)

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """As `ModelConfig.from_json`; scores must be scaled in the usual way."""
        own = super().from_json(config)
        for feature, only in (
            ("scale_attn_weights", True),
            ("scale_attn_by_inverse_layer_idx", False),
        ):
            if config.get(feature, only) != only:
                raise ValueError(
                    f"{feature} {shown(config[feature])} is not supported, only {only}"
                )
        return own

    @classmethod
    def from_gguf(cls, file: GgufFile) -> Self:
        return cls(
            n_embd=file.value("gpt2.embedding_length"),
            n_inner=file.value("gpt2.feed_forward_length", 0),
            n_head=file.value("gpt2.attention.head_count"),
            n_layer=file.value("gpt2.block_count"),
            n_positions=file.value("gpt2.context_length"),
            layer_norm_epsilon=file.number("gpt2.attention.layer_norm_epsilon"),
            **cls.words_of_gguf(file),
        )

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


class Attention(nnx.Module):
    """The projections of multi-head attention."""

    def __init__(self, config: GPT2Config, dtype: DTypeLike, rngs: nnx.Rngs):
        width, std = config.n_embd, config.initializer_range
        linear = functools.partial(Linear, width, width, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value = linear(std=std), linear(std=std), linear(std=std)
        self.output = linear(std=_residual_std(config))
        self.config = config

    def project(self, x: Array, rotation: None) -> tuple[Array, Array, Array]:
        """Queries, keys and values, each (B, T, heads, width / heads)."""

        def heads(y: Array) -> Array:
            return y.reshape(*y.shape[:-1], self.config.n_head, -1)

        return heads(self.query(x)), heads(self.key(x)), heads(self.value(x))


class Layer(DecoderLayer):
    """Attention and a feed-forward part."""

    def __init__(self, config: GPT2Config, dtype: DTypeLike, rngs: nnx.Rngs):
        width, inner = config.n_embd, config.n_inner
        self.attention_norm = LayerNorm(width, config.layer_norm_epsilon, dtype)
        self.attention = Attention(config, dtype, rngs)
        self.mlp_norm = LayerNorm(width, config.layer_norm_epsilon, dtype)
        self.up = Linear(width, inner, config.initializer_range, dtype, rngs)
        self.down = Linear(inner, width, _residual_std(config), dtype, rngs)
        self.attention_dropout = config.attn_pdrop
        self.residual_dropout = config.resid_pdrop
        self.config = config

    def feed_forward(self, x: Array) -> Array:
        inner = ACTIVATIONS[self.config.activation_function](self.up(x))
        return self.down(self.activations.within(inner))


class GPT2(Decoder):
    """GPT-2 (see `Decoder`)."""

    layer_type = Layer

    def __init__(
        self,
        config: GPT2Config,
        *,
        param_dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(config, param_dtype=param_dtype, rngs=rngs, **options)
        std = config.initializer_range
        self.position = Embedding(config.n_positions, config.n_embd, std, param_dtype, rngs)

    def make_norm(self, config: GPT2Config, dtype: DTypeLike) -> nnx.Module:
        return LayerNorm(config.n_embd, config.layer_norm_epsilon, dtype)

    def embed(
        self, input_ids: Array, positions: Array, dtype: DTypeLike, rng: Array | None
    ) -> Array:
        x = self.look_up(self.embedding, input_ids, dtype)
        x = x + self.look_up(self.position, positions, dtype)
        return dropout(x, self.config.embd_pdrop, rng)


def _residual_std(config: GPT2Config) -> float:
    """The initial std of layers that add to the residual, divided by the root of their number."""
    return config.initializer_range / (2 * config.n_layer) ** 0.5


FAMILY = Family(
    config=GPT2Config,
    model=GPT2,
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    names={
        "embedding": "wte",
        "position": "wpe",
        "layers/attention_norm": "h.{}.ln_1",
        "layers/attention/query": "h.{}.attn.c_attn",
        "layers/attention/key": "h.{}.attn.c_attn",
        "layers/attention/value": "h.{}.attn.c_attn",
        "layers/attention/output": "h.{}.attn.c_proj",
        "layers/mlp_norm": "h.{}.ln_2",
        "layers/up": "h.{}.mlp.c_fc",
        "layers/down": "h.{}.mlp.c_proj",
        "norm": "ln_f",
    },
    head={"head": "lm_head"},
    stored_in_out=True,
    buffers=("attn.bias", "attn.masked_bias"),
    gguf=Gguf(
        architecture="gpt2",
        names={
            "embedding": "token_embd",
            "position": "position_embd",
            "layers/attention_norm": "blk.{}.attn_norm",
            "layers/attention/query": "blk.{}.attn_qkv",
            "layers/attention/key": "blk.{}.attn_qkv",
            "layers/attention/value": "blk.{}.attn_qkv",
            "layers/attention/output": "blk.{}.attn_output",
            "layers/mlp_norm": "blk.{}.ffn_norm",
            "layers/up": "blk.{}.ffn_up",
            "layers/down": "blk.{}.ffn_down",
            "norm": "output_norm",
            "head": "output",
        },
    ),
)
