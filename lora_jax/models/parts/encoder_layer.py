"""A layer of an encoder: attention, then two linear maps, each with its residual and norm."""

from typing import Any

from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from lora_jax.models.parts.config_checks import ACTIVATIONS
from lora_jax.models.parts.modules import LayerNorm, Linear, dropout, split_keys


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
