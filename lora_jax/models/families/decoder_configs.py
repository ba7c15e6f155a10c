"""Supported decoders by the model_type of their config.json, without importing their modules."""

from typing import NamedTuple

from lora_jax.models.families.gpt2_config import GPT2Config
from lora_jax.models.families.llama_config import LlamaConfig


class DecoderKind(NamedTuple):
    """The class that reads a config.json, and the language model's name in transformers."""

    config: type[LlamaConfig] | type[GPT2Config]
    architecture: str


DECODER_KINDS = {
    "llama": DecoderKind(LlamaConfig, "LlamaForCausalLM"),
    "mistral": DecoderKind(LlamaConfig, "MistralForCausalLM"),
    "qwen2": DecoderKind(LlamaConfig, "Qwen2ForCausalLM"),
    "qwen3": DecoderKind(LlamaConfig, "Qwen3ForCausalLM"),
    "gpt2": DecoderKind(GPT2Config, "GPT2LMHeadModel"),
}
