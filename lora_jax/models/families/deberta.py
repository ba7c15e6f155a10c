"""DeBERTa v2 and v3 encoders with a sequence classifier, in Flax NNX.

Attention is disentangled: the score of a query and a key adds two products with the embedding of
their distance, the query's (c2p) and the key's (p2c). The layers are stacked and scanned as in
bert.py. The parameters have the same paths, and these more:

    embeddings/projection/kernel            if the tables differ in width from the hidden states
    embeddings/relative/embedding           (2 * span, hidden), one for each (bucket of a) distance
    embeddings/relative_norm/{scale,bias}                       with norm_rel_ebd="layer_norm"
    layers/attention/{position_key,position_query}/{kernel,bias}    unless share_att_key: then `key`
                                            and `query` project the relative embeddings as well
    convolution/{kernel,bias}, convolution/norm/{scale,bias}    with conv_kernel_size, after layer 0

He et al., 2021 (arXiv:2006.03654); He, Gao and Chen, 2023 (arXiv:2111.09543).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from lora_jax.base import wide
from lora_jax.models.families.deberta_attention import Attention, Relative
from lora_jax.models.families.deberta_config import DebertaConfig
from lora_jax.models.parts.classifier import EncoderClassifier
from lora_jax.models.parts.modules import (
    ACTIVATIONS,
    Embedding,
    LayerNorm,
    Linear,
    Pool,
    attention_bias,
    check_inputs,
    dropout,
    like,
    over_layers,
    split_keys,
)
from lora_jax.models.parts.relative import relative_indices


class Embeddings(nnx.Module):
    """The sum of word, position and token-type embeddings, normalised: (B, T) to (B, T, hidden).

    The config may leave out positions and token types.
    """

    def __init__(self, config: DebertaConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        width, std = config.hidden_size, config.initializer_range
        table = functools.partial(Embedding, std=std, dtype=dtype, rngs=rngs)
        self.word = table(config.vocab_size, config.embedding_size)
        if config.position_biased_input:
            self.position = table(config.max_position_embeddings, config.embedding_size)
        if config.type_vocab_size:
            self.token_type = table(config.type_vocab_size, config.embedding_size)
        if config.embedding_size != width:
            self.projection = Linear(config.embedding_size, width, std, dtype, rngs, use_bias=False)
        self.norm = LayerNorm(width, config.layer_norm_eps, dtype)
        if config.relative_attention:
            self.relative = table(2 * config.span, width)
            if config.norm_rel_ebd == "layer_norm":
                self.relative_norm = LayerNorm(width, config.layer_norm_eps, dtype)
        self.config = config

    def __call__(self, ids: Array, types: Array, mask: Array, dtype: DTypeLike) -> Array:
        c = self.config
        x = self.word(ids, dtype)
        if c.position_biased_input:
            x = x + self.position(jnp.arange(ids.shape[1])[None], dtype)
        if c.type_vocab_size:
            x = x + self.token_type(types, dtype)
        if c.embedding_size != c.hidden_size:
            x = self.projection(x)
        return self.norm(x) * mask.astype(dtype)[:, :, None]

    def distances(self, tokens: int, dtype: DTypeLike) -> Relative | None:
        """The relative embeddings for sequences of `tokens` tokens; None if the model has none."""
        c = self.config
        if not (c.relative_attention and c.pos_att_type):
            return None
        rows = relative_indices(tokens, c.span, c.position_buckets, c.relative_positions)
        first, last = int(rows.min()), int(rows.max())
        embeddings = self.relative.embedding[first : last + 1].astype(dtype)
        if c.norm_rel_ebd == "layer_norm":
            embeddings = self.relative_norm(embeddings)
        return Relative(embeddings, jnp.asarray(rows - first))


class Convolution(nnx.Module):
    """A convolution over the embeddings, which v2's largest models add to the first layer's output.

    The kernel is (conv_kernel_size, hidden / conv_groups, hidden).
    """

    def __init__(self, config: DebertaConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.hidden_size
        shape = (config.conv_kernel_size, width // config.conv_groups, width)
        std = config.initializer_range
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape, dtype))
        self.bias = nnx.Param(jnp.zeros(width, dtype))
        self.norm = LayerNorm(width, config.layer_norm_eps, dtype)
        self.config = config

    def branch(self, embedded: Array, mask: Array, rng: Array | None) -> Array:
        """The term to add, computed from the embeddings: (B, T, hidden) to (B, T, hidden)."""
        c = self.config
        y = jax.lax.conv_general_dilated(
            embedded,
            self.kernel[...].astype(embedded.dtype),
            window_strides=(1,),
            padding="SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=c.conv_groups,
        )
        y = (y + like(self.bias[...], y)) * mask.astype(y.dtype)[:, :, None]
        return ACTIVATIONS[c.conv_act](dropout(y, c.hidden_dropout_prob, rng))


class DebertaClassifier(EncoderClassifier):
    """DeBERTa v2 or v3 with a classifier over the pooled sequence.

    `pool="cls"` applies dropout, a dense layer and the config's activation to the first token.
    """

    embeddings_type = Embeddings
    attention_type = Attention

    def __init__(
        self,
        config: DebertaConfig,
        num_labels: int,
        pool: Pool = "cls",
        *,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(config, num_labels, pool, param_dtype=param_dtype, rngs=rngs, **options)
        if config.conv_kernel_size:
            self.convolution = Convolution(config, param_dtype, rngs)

    def pool_first(self, x: Array, rng: Array | None) -> Array:
        x = self.pooler(dropout(x, self.config.pooler_dropout, rng))
        return ACTIVATIONS[self.config.pooler_hidden_act](x)

    def encode(
        self,
        input_ids: Array,
        attention_mask: Array,
        token_type_ids: Array | None = None,
        *,
        rng: Array | None = None,
    ) -> Array:
        c = self.config
        check_inputs(input_ids, attention_mask, c.max_tokens)
        dtype = self.dtype or self.embeddings.word.embedding.dtype
        ignored = token_type_ids is None or c.type_vocab_size == 1
        types = jnp.zeros_like(input_ids) if ignored else token_type_ids
        mask = attention_mask.astype(bool)
        embedding_rng, convolution_rng, layers_rng = split_keys(rng, 3)
        x = self.embeddings(input_ids, types, mask, dtype)
        x = dropout(x, c.hidden_dropout_prob, embedding_rng)
        relative = self.embeddings.distances(input_ids.shape[1], dtype)

        bias = attention_bias(mask, wide(dtype))
        graph, weights = nnx.split(self.layers)

        # The convolution depends only on the embeddings: the loop only adds its result.
        after_first = _unchanged
        if c.conv_kernel_size:
            branch = self.convolution.branch(x, mask, convolution_rng)
            kept = mask.astype(dtype)[:, :, None]

            def after_first(x):
                return self.convolution.norm(x + branch) * kept

        def layer(x, each):
            weights, rng, is_first = each
            x = nnx.merge(graph, weights)(x, bias, relative, rng=rng)
            if c.conv_kernel_size:
                x = jax.lax.cond(is_first, after_first, _unchanged, x)
            return x, None

        rngs = None if layers_rng is None else jax.random.split(layers_rng, c.num_hidden_layers)
        is_first = jnp.arange(c.num_hidden_layers) == 0
        stacked = weights, rngs, is_first
        return over_layers(layer, x, stacked, c.num_hidden_layers, self.unroll, self.remat)[0]


def _unchanged(x: Array) -> Array:
    return x
