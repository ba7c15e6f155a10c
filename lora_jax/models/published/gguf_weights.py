"""The tensors of a GGUF file under transformers' names and in transformers' layout.

For the architecture "llama", llama.cpp rotates neighbouring features of a head (as in the rotary
paper), but transformers rotates features half a head apart. The rows of queries and keys are
therefore stored in another order there. Other architectures are rotated as in transformers. GPT-2's
matrices are stored as (out, in).
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.models.families.llama_config import LlamaConfig
from lora_jax.models.published.decoder_names import DecoderConfig
from lora_jax.models.published.gguf_config import gguf_config
from lora_jax.models.published.gguf_file import GgufFile
from lora_jax.models.published.placed import Index
from lora_jax.suggest import require_known

_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk": "model.layers",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk": "transformer.h",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


class GgufWeights:
    """A `Source` of tensors (see `decoders`), with the config of the same file."""

    def __init__(self, path: str | Path):
        self._file = GgufFile(path)
        self.folder = self._file.path
        self.config: DecoderConfig = gguf_config(self._file)
        self._kind: str = self._file.value("general.architecture")
        self._stored = {_translated(name, self._kind): name for name in self._file.names()}

    def names(self) -> list[str]:
        """The names of all tensors in transformers; parts of a name without one there are kept."""
        return list(self._stored)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise a ValueError unless a tensor has this name and shape and can be dequantised."""
        require_known(name, self._stored, f"{self.folder}: the weights have no tensor {name!r}")
        stored = self._stored[name]
        found = self._file.shape(stored)
        found = found[::-1] if self._is_transposed(name, found) else found
        if found != shape:
            raise ValueError(
                f"{self.folder}: tensor {name!r} ({stored!r}) has shape {found}, "
                f"the metadata asks for {shape}"
            )
        self._file.check_type(stored)

    def read(self, name: str) -> np.ndarray:
        """The tensor, dequantised to float32; ValueError if any value is not finite."""
        tensor = self._file.read(self._stored[name])
        if self._is_transposed(name, tensor.shape):
            return tensor.T
        heads = turned_heads(name, self.config)
        return tensor if heads is None else half_turned(tensor, heads)

    def part(self, name: str, index: Index) -> np.ndarray:
        """A part of the tensor; only the rows of the file that hold it are dequantised."""
        stored = self._stored[name]
        shape = self._file.shape(stored)
        if len(shape) == 1:
            return self.read(name)[index]
        if self._is_transposed(name, shape):
            return self._file.read(stored, index[1])[:, index[0]].T
        heads = turned_heads(name, self.config)
        rows: Any = index[0]
        if heads is not None:
            rows = half_turned(np.arange(shape[0]), heads)[rows]
        return self._file.read(stored, rows)[:, index[1]]

    def _is_transposed(self, name: str, shape: tuple[int, ...]) -> bool:
        return self._kind == "gpt2" and name.startswith("transformer.h.") and len(shape) == 2


def half_turned(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows, from rotating neighbouring features to rotating features half a head apart.

    The shape (heads x head_dim, ...) stays. The inverse of `permute` in llama.cpp's conversion.
    """
    split = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return split.swapaxes(1, 2).reshape(tensor.shape)


def neighbours_turned(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows as a file has them: the inverse of `half_turned`, `permute` in llama.cpp's."""
    split = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return split.swapaxes(1, 2).reshape(tensor.shape)


def turned_heads(name: str, config: DecoderConfig) -> int | None:
    """The number of heads of a projection whose rows are reordered; None for other tensors.

    Args:
      name: the tensor's in transformers.
    """
    found = re.search(r"\.(q|k)_proj\.", name)
    if found is None or not isinstance(config, LlamaConfig) or architecture(config) != "llama":
        return None
    return config.num_attention_heads if found[1] == "q" else config.num_key_value_heads


def architecture(config: DecoderConfig) -> str:
    """What llama.cpp calls a model; a Mistral is a "llama" there, too."""
    return "llama" if config.model_type == "mistral" else config.model_type


def gguf_name(name: str, config: DecoderConfig) -> str:
    """What a file calls a tensor of transformers: the inverse of how names are read.

    Raises:
      ValueError: files of this architecture have no such tensor.
    """
    words = {theirs: own for own, theirs in _words(config.model_type).items()}
    module, _, leaf = name.rpartition(".")
    if inner := re.fullmatch(r"(.+?)\.(\d+)\.(.+)", module):
        block, number, module = inner.groups()
        if block in words and module in words:
            return f"{words[block]}.{number}.{words[module]}.{leaf}"
    elif module in words:
        return f"{words[module]}.{leaf}"
    raise ValueError(f"GGUF files of a {config.model_type} have no tensor {name!r}")


def _words(kind: str) -> dict[str, str]:
    return _GPT2 if kind == "gpt2" else _LLAMA


def _translated(name: str, kind: str) -> str:
    """The name in transformers; an unknown tensor stays in its layer, where it is refused later."""
    words = _words(kind)
    module, _, leaf = name.rpartition(".")
    if inner := re.fullmatch(r"blk\.(\d+)\.(.+)", module):
        return f"{words['blk']}.{inner[1]}.{words.get(inner[2], inner[2])}.{leaf}"
    return f"{words.get(module, module)}.{leaf}"
