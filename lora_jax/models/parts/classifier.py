"""What all encoders' classifiers have in common: a layer, the stack, and the head over it."""

import functools
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from lora_jax.base import wide
from lora_jax.models.parts.modules import (
    ACTIVATIONS,
    LayerNorm,
    Linear,
    Pool,
    check_head,
    dropout,
    masked_mean,
    split_keys,
    stack_layers,
)


class EncoderLayer(nnx.Module):
    """One transformer layer, normalised after each residual: (B, T, hidden) to (B, T, hidden).

    `attention_type` is the family's module for attention with its residual and norm.
    """

    def __init__(self, attention_type: Any, config: Any, dtype: DTypeLike, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        self.attention = attention_type(config, dtype, rngs)
        self.up = Linear(width, inner, config.initializer_range, dtype, rngs)
        self.down = Linear(inner, width, config.initializer_range, dtype, rngs)
        self.norm = LayerNorm(width, config.layer_norm_eps, dtype)
        self.config = config

    def __call__(self, x: Array, *seen: Any, rng: Array | None) -> Array:
        """Apply the layer; `seen` is what attention reads besides x, such as its bias."""
        attention_rng, output_rng = split_keys(rng, 2)
        x = self.attention(x, *seen, attention_rng)
        y = self.down(ACTIVATIONS[self.config.hidden_act](self.up(x)))
        return self.norm(x + dropout(y, self.config.hidden_dropout_prob, output_rng))


class EncoderClassifier(nnx.Module):
    """A stacked encoder with a classifier over the pooled sequence.

    `pool="mean"` averages the last hidden states of the unmasked tokens, as sentence encoders do.
    `pool="cls"` is the published classifier of the family, over the first token. A regression has
    num_labels=1.

    The encoder computes in `dtype`, by default the dtype of its parameters; norms and softmax are
    in float32 at least, the head in the dtype of its parameters. `remat` recomputes each layer in
    the backward pass instead of keeping its activations; `unroll` is that of
    `modules.over_layers`. The model holds no random state: pass `rng` to a call for dropout.

    A family defines `embeddings_type`, `attention_type`, `pool_first` and `encode`.
    """

    embeddings_type: ClassVar[Any]
    attention_type: ClassVar[Any]

    def __init__(
        self,
        config: Any,
        num_labels: int,
        pool: Pool = "cls",
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        unroll: int | None = None,
        rngs: nnx.Rngs,
    ):
        check_head(num_labels, pool)
        self.config, self.pool, self.dtype = config, pool, dtype
        self.remat, self.unroll = remat, unroll
        width, std = config.hidden_size, config.initializer_range
        self.embeddings = self.embeddings_type(config, param_dtype, rngs)
        make = functools.partial(EncoderLayer, self.attention_type, config, param_dtype)
        self.layers = stack_layers(make, config.num_hidden_layers, rngs)
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
            attention_mask: (B, T), nonzero for a token. Padding at the end changes no logit; a
                fully masked row gives finite logits.
            token_type_ids: (B, T), the segment of each token, by default 0; a model without token
                types ignores it.
            rng: dropout at the config's rates with this key; no dropout without one.
        """
        encoder_rng, pooler_rng, head_rng = split_keys(rng, 3)
        x = self.encode(input_ids, attention_mask, token_type_ids, rng=encoder_rng)
        if self.pool == "mean":
            pooled = masked_mean(x, attention_mask)
        else:
            pooled = self.pool_first(x[:, 0].astype(self.pooler.kernel.dtype), pooler_rng)
        pooled = dropout(pooled, self.config.head_dropout, head_rng)
        logits = self.classifier(pooled.astype(self.classifier.kernel.dtype))
        return logits.astype(wide(logits.dtype))

    def pool_first(self, x: Array, rng: Array | None) -> Array:
        """The head's input from the first token's hidden states, (B, hidden) to (B, hidden)."""
        raise NotImplementedError

    def encode(
        self,
        input_ids: Array,
        attention_mask: Array,
        token_type_ids: Array | None = None,
        *,
        rng: Array | None = None,
    ) -> Array:
        """The last hidden states (B, T, hidden), in `dtype`; arguments as for a call."""
        raise NotImplementedError
