"""Qwen 3: Qwen 2 with heads of a stated size, and norms of queries and keys instead of biases.

    layers/attention/{query,key}_norm/scale    beside Llama's parameters

Qwen team, 2025 (arXiv:2505.09388).
"""

import dataclasses

from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from lora_jax.models.families import llama, qwen2
from lora_jax.models.parts.config_checks import integer
from lora_jax.models.parts.modules import RMSNorm


@dataclasses.dataclass(frozen=True)
class Qwen3Config(qwen2.Qwen2Config):
    """As `Qwen2Config`; biases are those that `attention_bias` says."""

    model_type: str = "qwen3"
    head_dim: int = integer(128, least=0, null=0)

    @property
    def biases(self) -> llama.Biases:
        return llama.Biases(self.attention_bias, self.attention_bias, False)


class Attention(llama.Attention):
    """Grouped-query attention whose queries and keys are normalised, head by head."""

    def __init__(self, config: Qwen3Config, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(config, dtype, rngs)
        self.query_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype)
        self.key_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype)

    def heads(self, x: Array) -> tuple[Array, Array, Array]:
        query, key, value = super().heads(x)
        return self.query_norm(query), self.key_norm(key), value


class Layer(llama.Layer):
    """A layer of Llama with this attention."""

    attention_type = Attention


class Qwen3(llama.Llama):
    """A Qwen 3 (see `Decoder`)."""

    layer_type = Layer


FAMILY = dataclasses.replace(
    qwen2.FAMILY,
    config=Qwen3Config,
    model=Qwen3,
    architecture="Qwen3ForCausalLM",
    names={
        **qwen2.FAMILY.names,
        "layers/attention/query_norm": "layers.{}.self_attn.q_norm",
        "layers/attention/key_norm": "layers.{}.self_attn.k_norm",
    },
    gguf=dataclasses.replace(
        qwen2.GGUF,
        architecture="qwen3",
        names={
            **qwen2.GGUF.names,
            "layers/attention/query_norm": "blk.{}.attn_q_norm",
            "layers/attention/key_norm": "blk.{}.attn_k_norm",
        },
    ),
)
