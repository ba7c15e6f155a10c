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

import functools
from typing import Any

from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from lora_jax.models.families.gpt2_config import GPT2Config
from lora_jax.models.parts.decoder import Decoder, DecoderLayer
from lora_jax.models.parts.modules import ACTIVATIONS, Embedding, LayerNorm, Linear, dropout


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
