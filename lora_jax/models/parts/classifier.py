"""What all encoders' classifiers have in common: a layer, the stack, and the head over it."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, get_args

import jax
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
    attention_bias,
    dropout,
    masked_mean,
    over_layers,
    split_keys,
    stack_layers,
)

Step = Callable[[Array], Array]
"""A function of hidden states (B, T, hidden), of which it gives others."""


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
        x = self.attention(x, *seen, rng=attention_rng)
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

    A family defines `embeddings_type`, `attention_type`, `pool_first` and, if needed, `distances`
    and `after_first`.
    """

    embeddings_type: ClassVar[Any]
    attention_type: ClassVar[Any]
    branches = False
    """Whether a part beside the layers has dropout of its own (see `after_first`)."""

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
        if pool not in get_args(Pool):
            raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, got {pool!r}")
        if num_labels < 1:
            raise ValueError(f"num_labels must be at least 1, got {num_labels}")
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

    def distances(self, tokens: int, dtype: DTypeLike) -> tuple[Any, ...]:
        """What attention reads besides hidden states and the mask, for sequences of `tokens`."""
        return ()

    def after_first(self, x: Array, mask: Array, rng: Array | None) -> Step | None:
        """What changes the first layer's output, from the embeddings; None for nothing."""
        return None

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
        if input_ids.ndim != 2 or attention_mask.shape != input_ids.shape:
            raise ValueError(
                "input_ids and attention_mask must both be (batch, tokens), "
                f"got {input_ids.shape} and {attention_mask.shape}"
            )
        if input_ids.shape[1] > c.max_tokens:
            raise ValueError(f"{input_ids.shape[1]} tokens; the model takes at most {c.max_tokens}")
        dtype = self.dtype or self.embeddings.word.embedding.dtype
        ignored = token_type_ids is None or c.type_vocab_size == 1
        types = jnp.zeros_like(input_ids) if ignored else token_type_ids
        mask = attention_mask.astype(bool)
        embedding_rng, *between, layers_rng = split_keys(rng, 3 if self.branches else 2)
        x = self.embeddings(input_ids, types, mask, dtype)
        x = dropout(x, c.hidden_dropout_prob, embedding_rng)
        after_first = self.after_first(x, mask, *between) if self.branches else None
        seen = attention_bias(mask, wide(dtype)), *self.distances(input_ids.shape[1], dtype)
        graph, weights = nnx.split(self.layers)

        def layer(x: Array, each: tuple[Any, Array | None, Array]) -> tuple[Array, None]:
            weights, rng, is_first = each
            x = nnx.merge(graph, weights)(x, *seen, rng=rng)
            if after_first is not None:
                x = jax.lax.cond(is_first, after_first, lambda x: x, x)
            return x, None

        count = c.num_hidden_layers
        rngs = None if layers_rng is None else jax.random.split(layers_rng, count)
        stacked = weights, rngs, jnp.arange(count) == 0
        return over_layers(layer, x, stacked, count, self.unroll, self.remat)[0]
