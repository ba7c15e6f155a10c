"""Mistral: Llama in which a token attends to the last `sliding_window` tokens.

Jiang et al., 2023 (arXiv:2310.06825).
"""

import dataclasses

from lora_jax.models.families import llama
from lora_jax.models.parts.config_checks import integer


@dataclasses.dataclass(frozen=True)
class MistralConfig(llama.LlamaConfig):
    """As `LlamaConfig`, with Mistral's defaults. All layers slide if there is a window."""

    model_type: str = "mistral"
    intermediate_size: int = integer(14336)
    max_position_embeddings: int = integer(131072)
    num_key_value_heads: int = integer(8, least=0, null=0)
    sliding_window: int | None = integer(4096, null=None)

    def used_window(self) -> int | None:
        return self.sliding_window

    @property
    def biases(self) -> llama.Biases:
        return llama.Biases(False, False, False)


FAMILY = dataclasses.replace(llama.FAMILY, config=MistralConfig, architecture="MistralForCausalLM")
