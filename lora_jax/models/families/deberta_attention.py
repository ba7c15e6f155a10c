"""DeBERTa's disentangled attention: by content, and by the distance between two tokens.

The score of a query and a key adds two products with the embedding of their distance, the query's
(c2p) and the key's (p2c). With share_att_key, the query and key kernels also project these
embeddings. He et al., 2021 (arXiv:2006.03654), section 3.1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from lora_jax.models.families.deberta_config import DebertaConfig
from lora_jax.models.parts.modules import LayerNorm, Linear, dropout, split_keys
from lora_jax.models.parts.relative import skew


class Relative(NamedTuple):
    """The relative embeddings that a sequence needs, computed once for all layers.

    `embeddings` (rows, hidden); `order` (2 T - 1,), the row of each distance from 1 - T to T - 1.
    """

    embeddings: Array
    order: Array


class Attention(nnx.Module):
    """Disentangled self-attention with its residual and norm: (B, T, hidden) to (B, T, hidden)."""

    def __init__(self, config: DebertaConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.hidden_size
        linear = functools.partial(
            Linear, width, width, std=config.initializer_range, dtype=dtype, rngs=rngs
        )
        self.query, self.key, self.value, self.output = linear(), linear(), linear(), linear()
        if config.relative_attention and not config.share_att_key:
            if "c2p" in config.pos_att_type:
                self.position_key = linear()
            if "p2c" in config.pos_att_type:
                self.position_query = linear()
        self.norm = LayerNorm(width, config.layer_norm_eps, dtype)
        self.config = config

    def __call__(
        self, x: Array, bias: Array, relative: Relative | None, rng: Array | None
    ) -> Array:
        c = self.config
        probabilities_rng, output_rng, position_rng = split_keys(rng, 3)
        query, key, value = (self._heads(f(x)) for f in (self.query, self.key, self.value))
        scores = query @ key.swapaxes(-2, -1)
        if relative is not None:
            embeddings = dropout(relative.embeddings, c.hidden_dropout_prob, position_rng)
            if "c2p" in c.pos_att_type:
                project = self.key if c.share_att_key else self.position_key
                away = relative.order[::-1]
                scores = scores + self._by_distance(query, project(embeddings), away)
            if "p2c" in c.pos_att_type:
                project = self.query if c.share_att_key else self.position_query
                by_key = self._by_distance(key, project(embeddings), relative.order)
                scores = scores + by_key.swapaxes(-2, -1)
        scores = scores * (query.shape[-1] * (1 + len(c.pos_att_type))) ** -0.5
        p = jax.nn.softmax(scores.astype(bias.dtype) + bias, axis=-1).astype(x.dtype)
        p = dropout(p, c.attention_probs_dropout_prob, probabilities_rng)
        y = self.output((p @ value).swapaxes(-3, -2).reshape(x.shape))
        return self.norm(x + dropout(y, c.hidden_dropout_prob, output_rng))

    def _heads(self, y: Array) -> Array:
        """(..., T, hidden) to (..., heads, T, head)."""
        return y.reshape(*y.shape[:-1], self.config.num_attention_heads, -1).swapaxes(-3, -2)

    def _by_distance(self, x: Array, positions: Array, order: Array) -> Array:
        """The product of each token's x with the projected embedding of its distance to each token.

        With one column per distance, in order, skewing aligns the columns with the tokens. This
        avoids gathering single elements, and scattering them in the backward pass, which is slow on
        a CPU.
        """
        rows = jnp.take(self._heads(positions), order, axis=-2)
        return skew(x @ rows.swapaxes(-2, -1)[None])
