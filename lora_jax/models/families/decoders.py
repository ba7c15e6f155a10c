"""The families of decoders: the config and model classes for each model_type of a config.json."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lora_jax.models.families.decoder_configs import DECODER_KINDS
from lora_jax.models.families.gpt2 import GPT2
from lora_jax.models.families.gpt2_config import GPT2Config
from lora_jax.models.families.llama import Llama
from lora_jax.models.families.llama_config import LlamaConfig
from lora_jax.models.parts.config_checks import shown
from lora_jax.suggest import nearest


class DecoderFamily(NamedTuple):
    """The classes of a family, and the name of its language model in transformers."""

    config: type[LlamaConfig] | type[GPT2Config]
    decoder: type[Llama] | type[GPT2]
    architecture: str


_DECODERS = {LlamaConfig: Llama, GPT2Config: GPT2}
DECODERS = {
    name: DecoderFamily(kind.config, _DECODERS[kind.config], kind.architecture)
    for name, kind in DECODER_KINDS.items()
}


def decoder_family_of(config: Mapping[str, Any]) -> DecoderFamily:
    """The family of a config.json's content; ValueError for one that is not supported."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in DECODERS:
        return DECODERS[model_type]
    raise ValueError(
        f"model_type {shown(model_type)} is not supported; nearest: "
        f"{nearest(str(model_type), DECODERS)}; supported: {', '.join(DECODERS)}"
    )
