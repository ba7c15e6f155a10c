"""A decoder's config from a GGUF file's metadata, equal to the one from its config.json.

llama.cpp uses "llama" for Llama, Mistral and other models that compute in the same way. Keys are
documented in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; for their values, see the
conversion in https://github.com/ggml-org/llama.cpp (convert_hf_to_gguf.py).
"""

import dataclasses
from typing import Any

import numpy as np

from lora_jax.models.families.gpt2_config import GPT2Config
from lora_jax.models.families.llama_config import LlamaConfig
from lora_jax.models.parts.config_checks import check_known_tokens, shown
from lora_jax.models.parts.rope import Rope, frequencies
from lora_jax.models.published.decoder_names import DecoderConfig
from lora_jax.models.published.gguf_file import GgufError, GgufFile
from lora_jax.suggest import nearest

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2")

# The numbers of Llama 3.1 and its successors; the file holds only their effect on each frequency.
_LLAMA3: dict[str, Any] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def gguf_config(file: GgufFile) -> DecoderConfig:
    """The checked config of a file.

    Numbers stored as float32 become the shortest decimals with the same float32 value. Raises a
    GgufError for another architecture, an unsupported feature, and a number that is missing or out
    of range.
    """
    kind = file.value("general.architecture")
    if kind not in ARCHITECTURES:
        raise GgufError(
            file.path,
            f"architecture {shown(kind)} is not supported; nearest: "
            f"{nearest(str(kind), ARCHITECTURES)}; supported: {', '.join(ARCHITECTURES)}",
        )
    try:
        config = _gpt2(file) if kind == "gpt2" else _llama(file, kind)
        check_known_tokens(vars(config), config.vocab_size)
        return config
    except GgufError:  # it names the file already
        raise
    except ValueError as error:
        raise GgufError(file.path, str(error)) from None


def _llama(file: GgufFile, kind: str) -> LlamaConfig:
    def of(key: str, *default: Any) -> Any:
        return _decimal(file.value(f"{kind}.{key}", *default))

    if of("expert_count", 0):
        raise ValueError("mixtures of experts are not supported: plain decoders only")
    heads, width = of("attention.head_count"), of("embedding_length")
    groups, inner = of("attention.head_count_kv", heads), of("feed_forward_length")
    for key, value in (("head_count", heads), ("head_count_kv", groups), ("length", inner)):
        if isinstance(value, list):
            raise ValueError(f"layers of different sizes ({key}: {shown(value)}) are not supported")
    turning = of("rope.dimension_count", 0)
    head_dim = of("attention.key_length", turning)
    for key, value in (("attention.value_length", head_dim), ("rope.dimension_count", head_dim)):
        if of(key, value) != value:
            raise ValueError(
                f"{key} {shown(of(key))} is not supported, only the keys' length {shown(value)}"
            )
    window = of("attention.sliding_window", None) or None
    if window and kind != "llama":
        raise ValueError(f"attention.sliding_window of a {kind} is not supported")
    config = LlamaConfig(
        model_type="mistral" if window else kind,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        num_hidden_layers=of("block_count"),
        max_position_embeddings=of("context_length"),
        rms_norm_eps=of("attention.layer_norm_rms_epsilon"),
        attention_bias=kind != "qwen2" and "blk.0.attn_output.bias" in file,
        mlp_bias="blk.0.ffn_up.bias" in file,
        sliding_window=window,
        **_shared(file, kind),
    )
    return dataclasses.replace(config, rope=_rope(file, kind, config))


def _gpt2(file: GgufFile) -> GPT2Config:
    return GPT2Config(
        n_embd=file.value("gpt2.embedding_length"),
        n_inner=file.value("gpt2.feed_forward_length", 0),
        n_head=file.value("gpt2.attention.head_count"),
        n_layer=file.value("gpt2.block_count"),
        n_positions=file.value("gpt2.context_length"),
        layer_norm_epsilon=_decimal(file.value("gpt2.attention.layer_norm_epsilon")),
        **_shared(file, "gpt2"),
    )


def _shared(file: GgufFile, kind: str) -> dict[str, Any]:
    """Settings of all families: the vocabulary, and the tokens that begin, end and pad texts."""
    words = file.value(f"{kind}.vocab_size", 0)
    if not words and "token_embd.weight" in file:
        words = file.shape("token_embd.weight")[0]
    ends = (file.value(f"tokenizer.ggml.{name}_token_id", None) for name in ("eos", "eot"))
    return {
        "vocab_size": words,
        "tie_word_embeddings": "output.weight" not in file,
        "bos_token_id": file.value("tokenizer.ggml.bos_token_id", None),
        "eos_token_id": tuple(dict.fromkeys(each for each in ends if each is not None)),
        "pad_token_id": file.value("tokenizer.ggml.padding_token_id", None),
    }


def _rope(file: GgufFile, kind: str, config: LlamaConfig) -> Rope:
    def of(key: str, default: Any = None) -> Any:
        return _decimal(file.value(f"{kind}.rope.{key}", default))

    theta, scaling = of("freq_base", 10000.0), of("scaling.type", "none")
    factor = of("scaling.factor") or of("scale_linear") or 1.0
    if "rope_freqs.weight" in file:
        return _llama3(file.read("rope_freqs.weight"), theta, config.head_dim)
    if scaling == "none" and of("scale_linear"):  # files older than scaling.type
        scaling = "linear"
    if scaling == "none" or (scaling == "linear" and factor == 1):
        return Rope(theta)
    if scaling == "linear":
        return Rope(theta, "linear", factor=factor)
    if scaling == "yarn":
        if of("scaling.attn_factor", 1.0) != 1 or of("scaling.yarn_attn_factor", 1.0) != 1:
            raise ValueError("rope.scaling.attn_factor other than 1 is not supported")
        length = of("scaling.original_context_length", config.max_position_embeddings)
        fast, slow = of("scaling.yarn_beta_fast"), of("scaling.yarn_beta_slow")
        numbers: Any = {"factor": factor, "beta_fast": fast, "beta_slow": slow}
        return Rope(theta, "yarn", original_max_position_embeddings=length, **numbers)
    raise ValueError(
        f"rope.scaling.type {shown(scaling)} is not supported; supported: linear, yarn"
    )


def _llama3(divisors: np.ndarray, theta: float, head_dim: int) -> Rope:
    """The scaling of Llama 3.1, from the number by which the file divides each frequency."""
    wrong = ValueError("tensor 'rope_freqs.weight' is not the scaling of Llama 3.1")
    if divisors.shape != (head_dim // 2,):  # check first: frequencies can be made for any head_dim
        raise wrong
    rope = Rope(theta, "llama3", factor=_decimal(float(divisors.max())), **_LLAMA3)
    plain, _ = frequencies(Rope(theta), head_dim)
    scaled, _ = frequencies(rope, head_dim)
    if not np.allclose(plain / divisors, scaled, rtol=1e-5):
        raise wrong
    return rope


def _decimal(value: Any) -> Any:
    return float(str(np.float32(value))) if isinstance(value, float) else value
