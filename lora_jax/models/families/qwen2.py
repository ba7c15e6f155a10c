"""Qwen 2: Llama with biases of queries, keys and values, and windows in its upper layers.

    layers/attention/{query,key,value}/bias    beside Llama's parameters

Qwen team, 2024 (arXiv:2407.10671).
"""

import dataclasses
from typing import ClassVar

from lora_jax.models.families import llama
from lora_jax.models.parts.config_checks import integer, token, tokens


@dataclasses.dataclass(frozen=True)
class Qwen2Config(llama.LlamaConfig):
    """As `LlamaConfig`, with Qwen's defaults.

    With `use_sliding_window`, layers from `max_window_layers` on slide unless `layer_types` says
    otherwise.
    """

    model_type: str = "qwen2"
    vocab_size: int = integer(151936)
    intermediate_size: int = integer(22016)
    num_key_value_heads: int = integer(32, least=0, null=0)
    max_position_embeddings: int = integer(32768)
    sliding_window: int | None = integer(4096, null=None)
    bos_token_id: int | None = token(None)
    eos_token_id: tuple[int, ...] = tokens(())

    mixes_layers: ClassVar[bool] = True

    def used_window(self) -> int | None:
        return self.sliding_window if self.use_sliding_window else None

    @property
    def first_sliding(self) -> int:
        return self.max_window_layers

    @property
    def biases(self) -> llama.Biases:
        return llama.Biases(inputs=True, output=False, feed_forward=False)


GGUF = dataclasses.replace(llama.GGUF, architecture="qwen2", turns_neighbours=False)
FAMILY = dataclasses.replace(
    llama.FAMILY,
    config=Qwen2Config,
    architecture="Qwen2ForCausalLM",
    gguf=GGUF,
)
