"""BERT and RoBERTa encoders with a sequence classifier, in Flax NNX.

The layers are stacked along a leading axis and scanned, so the program, and the time to compile
it, is the same for 6 layers and for 24. Every kernel is a plain (in, out) matrix, (layers, in, out)
when stacked; heads appear only after the product. The parameters' paths:

    embeddings/{word,position,token_type}/embedding    embeddings/norm/{scale,bias}
    layers/attention/{query,key,value,output}/{kernel,bias}    layers/attention/norm/{scale,bias}
    layers/{up,down}/{kernel,bias}                             layers/norm/{scale,bias}
    pooler/{kernel,bias}  (pool="cls" only)            classifier/{kernel,bias}

Devlin et al., 2019 (arXiv:1810.04805); Liu et al., 2019 (arXiv:1907.11692).
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from lora_jax.models.bert_config import BertConfig
from lora_jax.models.config_checks import ACTIVATIONS
from lora_jax.models.modules import (
    Embedding,
    LayerNorm,
    Linear,
    Pool,
    check_head,
    check_inputs,
    dropout,
    masked_mean,
    split_keys,
    stack,
    wide,
)


class Embeddings(nnx.Module):
    """The sum of word, position and token-type embeddings, normalised: (B, T) to (B, T, hidden)."""

    def __init__(self, config: BertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        table = functools.partial(
            Embedding,
            width=config.hidden_size,
            std=config.initializer_range,
            dtype=dtype,
            rngs=rngs,
        )
        self.word = table(config.vocab_size)
        self.position = table(config.max_position_embeddings)
        self.token_type = table(config.type_vocab_size)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps, dtype)

    def __call__(self, ids: Array, positions: Array, types: Array, dtype: DTypeLike) -> Array:
        x = self.word(ids, dtype) + self.token_type(types, dtype) + self.position(positions, dtype)
        return self.norm(x)


class Attention(nnx.Module):
    """Multi-head self-attention, its residual and its norm: (B, T, hidden) to the same."""

    def __init__(self, config: BertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.hidden_size
        linear = functools.partial(
            Linear, width, width, std=config.initializer_range, dtype=dtype, rngs=rngs
        )
        self.query, self.key, self.value, self.output = linear(), linear(), linear(), linear()
        self.norm = LayerNorm(width, config.layer_norm_eps, dtype)
        self.config = config

    def __call__(self, x: Array, bias: Array, rng: Array | None) -> Array:
        c = self.config
        probabilities_rng, output_rng = split_keys(rng, 2)

        # Heads before tokens: both products are then plain batched matrices, which XLA:CPU runs
        # 1.7 times as fast in the backward pass as (B, T, heads, head).
        def heads(y: Array) -> Array:
            return y.reshape(*y.shape[:-1], c.num_attention_heads, -1).swapaxes(-3, -2)

        query, key, value = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        scores = query @ key.swapaxes(-2, -1) * query.shape[-1] ** -0.5
        p = jax.nn.softmax(scores.astype(bias.dtype) + bias, axis=-1).astype(x.dtype)
        p = dropout(p, c.attention_probs_dropout_prob, probabilities_rng)
        y = self.output((p @ value).swapaxes(-3, -2).reshape(x.shape))
        return self.norm(x + dropout(y, c.hidden_dropout_prob, output_rng))


class Layer(nnx.Module):
    """One transformer layer, normalised after each residual: (B, T, hidden) to the same."""

    def __init__(self, config: BertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        self.attention = Attention(config, dtype, rngs)
        self.up = Linear(width, inner, config.initializer_range, dtype, rngs)
        self.down = Linear(inner, width, config.initializer_range, dtype, rngs)
        self.norm = LayerNorm(width, config.layer_norm_eps, dtype)
        self.config = config

    def __call__(self, x: Array, bias: Array, rng: Array | None) -> Array:
        attention_rng, output_rng = split_keys(rng, 2)
        x = self.attention(x, bias, attention_rng)
        y = self.down(ACTIVATIONS[self.config.hidden_act](self.up(x)))
        return self.norm(x + dropout(y, self.config.hidden_dropout_prob, output_rng))


class BertClassifier(nnx.Module):
    """BERT or RoBERTa with a classifier over the pooled sequence.

    `pool="mean"` averages the last hidden states of the unmasked tokens, as sentence encoders do.
    `pool="cls"` is the published classifier of each family: dense and tanh over the first token,
    for RoBERTa with one more dropout before the dense layer. Regression is num_labels=1.

    `dtype` is what the encoder computes in, by default the dtype of its parameters; norms and
    softmax stay in float32 at least, the head in the dtype of its parameters. `remat` recomputes
    each layer in the backward pass instead of keeping its activations. The model holds no random
    state: pass `rng` to a call for dropout.
    """

    def __init__(
        self,
        config: BertConfig,
        num_labels: int,
        pool: Pool = "cls",
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        check_head(num_labels, pool)
        self.config, self.pool, self.dtype, self.remat = config, pool, dtype, remat
        width, std = config.hidden_size, config.initializer_range
        self.embeddings = Embeddings(config, param_dtype, rngs)
        make = functools.partial(Layer, config, param_dtype)
        self.layers = stack(make, config.num_hidden_layers, rngs)
        if pool == "cls":
            self.pooler = Linear(width, width, std, param_dtype, rngs)
        self.classifier = Linear(width, num_labels, std, param_dtype, rngs)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array,
        token_type_ids: Array | None = None,
        *,
        rng: Array | None = None,
    ) -> Array:
        """Logits (B, num_labels), float32 at least, of padded sequences.

        Args:
            input_ids: (B, T) integers.
            attention_mask: (B, T), nonzero where there is a token. Padding changes no logit, and a
                wholly masked row gives finite ones.
            token_type_ids: (B, T) segment of each token, by default 0.
            rng: dropout at the config's rates with this key; no dropout without one.
        """
        encoder_rng, head_rng = split_keys(rng, 2)
        x = self.encode(input_ids, attention_mask, token_type_ids, rng=encoder_rng)
        before, after = split_keys(head_rng, 2)
        if self.pool == "mean":
            pooled = masked_mean(x, attention_mask)
        else:
            pooled = x[:, 0].astype(self.pooler.kernel.dtype)
            if self.config.model_type == "roberta":
                pooled = dropout(pooled, self.config.head_dropout, before)
            pooled = jnp.tanh(self.pooler(pooled))
        pooled = dropout(pooled, self.config.head_dropout, after)
        logits = self.classifier(pooled.astype(self.classifier.kernel.dtype))
        return logits.astype(wide(logits.dtype))

    def encode(
        self,
        input_ids: Array,
        attention_mask: Array,
        token_type_ids: Array | None = None,
        *,
        rng: Array | None = None,
    ) -> Array:
        """The last hidden states (B, T, hidden), in `dtype`; arguments as for a call."""
        c = self.config
        check_inputs(input_ids, attention_mask, c.max_tokens)
        dtype = self.dtype or self.embeddings.word.embedding.dtype
        types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        mask = attention_mask.astype(bool).astype(jnp.int32)
        positions = jnp.arange(mask.shape[1])[None]
        if c.model_type == "roberta":
            positions = mask * jnp.cumsum(mask, axis=1) + c.pad_token_id
        embedding_rng, layers_rng = split_keys(rng, 2)
        x = self.embeddings(input_ids, positions, types, dtype)
        x = dropout(x, c.hidden_dropout_prob, embedding_rng)

        # Finite, so that a wholly masked row has a softmax too.
        scores = wide(dtype)
        bias = jnp.where(mask == 0, jnp.array(-1e30, scores), jnp.array(0, scores))[
            :, None, None, :
        ]
        graph, weights = nnx.split(self.layers)

        def layer(x, weights_and_rng):
            weights, rng = weights_and_rng
            return nnx.merge(graph, weights)(x, bias, rng), None

        if self.remat:
            layer = jax.checkpoint(layer, prevent_cse=False)
        rngs = None if layers_rng is None else jax.random.split(layers_rng, c.num_hidden_layers)
        return jax.lax.scan(layer, x, (weights, rngs))[0]
