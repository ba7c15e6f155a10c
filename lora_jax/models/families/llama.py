"""The Llama family of decoders in Flax NNX: Llama 2 and 3, TinyLlama, SmolLM2, Mistral, Qwen 2, 3.

The layers are stacked along a leading axis, and scanned or unrolled as those of bert.py. Every
kernel is a plain (in, out) matrix, (layers, in, out) when stacked; outputs are split into heads
only after the product. The parameters' paths:

    embedding/embedding
    layers/attention_norm/scale    layers/attention/{query,key,value,output}/kernel
    layers/mlp_norm/scale          layers/{gate,up,down}/kernel
    norm/scale                     head/kernel  (unless tied to the embedding)
    layers/attention/{query,key,value}/bias  (Qwen 2)
    layers/attention/{query,key}_norm/scale  (Qwen 3)

Touvron et al., 2023 (arXiv:2307.09288); Jiang et al., 2023 (arXiv:2310.06825); Qwen team, 2024 and
2025 (arXiv:2407.10671, arXiv:2505.09388).
"""

import functools

import jax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from lora_jax.models.families.llama_config import LlamaConfig
from lora_jax.models.parts.decoder import Decoder, DecoderLayer
from lora_jax.models.parts.modules import ACTIVATIONS, Linear, RMSNorm
from lora_jax.models.parts.rope import Rotation, rotate, rotation


class Attention(nnx.Module):
    """The projections of grouped-query attention."""

    def __init__(self, config: LlamaConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        linear = functools.partial(Linear, std=config.initializer_range, dtype=dtype, rngs=rngs)
        width, head = config.hidden_size, config.head_dim
        heads, groups = config.num_attention_heads * head, config.num_key_value_heads * head
        self.query = linear(width, heads, use_bias=config.input_bias)
        self.key = linear(width, groups, use_bias=config.input_bias)
        self.value = linear(width, groups, use_bias=config.input_bias)
        self.output = linear(heads, width, use_bias=config.output_bias)
        if config.norms_heads:
            self.query_norm = RMSNorm(head, config.rms_norm_eps, dtype)
            self.key_norm = RMSNorm(head, config.rms_norm_eps, dtype)
        self.config = config

    def project(self, x: Array, rotation: Rotation) -> tuple[Array, Array, Array]:
        """Queries (B, T, heads, head_dim), and keys and values (B, T, groups, head_dim).

        Queries and keys are rotated by their positions.
        """

        def heads(y: Array) -> Array:
            return y.reshape(*y.shape[:-1], -1, self.config.head_dim)

        query, key, value = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        if self.config.norms_heads:
            query, key = self.query_norm(query), self.key_norm(key)
        return rotate(query, rotation), rotate(key, rotation), value


class Layer(DecoderLayer):
    """Attention and a gated feed-forward part (SwiGLU: Shazeer, 2020, arXiv:2002.05202)."""

    residual_dropout = 0.0

    def __init__(self, config: LlamaConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        linear = functools.partial(
            Linear,
            std=config.initializer_range,
            dtype=dtype,
            rngs=rngs,
            use_bias=config.feed_forward_bias,
        )
        self.attention_norm = RMSNorm(width, config.rms_norm_eps, dtype)
        self.attention = Attention(config, dtype, rngs)
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
    """Llama, Mistral, Qwen 2 or Qwen 3 (see `Decoder`)."""

    layer_type = Layer

    def make_norm(self, config: LlamaConfig, dtype: DTypeLike) -> nnx.Module:
        return RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)

    def rotation(self, positions: Array, dtype: DTypeLike) -> Rotation:
        return rotation(self.config.rope, self.config.head_dim, positions, dtype)
