"""A plain LoRA as the GGUF file that llama.cpp loads beside a model (`--lora`).

llama.cpp computes W x + (alpha / rank) B A x, with the file's alpha and the rank of each tensor, on
weights in its own layout (`gguf_weights`). Where that layout has the rows of queries and keys in
another order, so has B. llama.cpp's convert_lora_to_gguf.py makes the same of a PEFT folder.
"""

import contextlib
import os
from pathlib import Path

import numpy as np

from lora_jax.files.atomic import replacing
from lora_jax.files.gguf_file import library
from lora_jax.interchange.peft_folder import MODEL, PeftFolder
from lora_jax.models.parts.config_checks import DecoderConfig
from lora_jax.models.published.gguf import architecture, gguf_name, neighbours_turned, turned_heads

_A, _B = ".lora_A.weight", ".lora_B.weight"


def write_gguf_lora(
    path: str | os.PathLike, folder: str | os.PathLike, config: DecoderConfig
) -> Path:
    """Write the adapter of a folder of `save_plain_lora` as one GGUF file, in float32.

    Args:
      path: the file to write, whole or not at all; its folder is made.
      folder: what `save_plain_lora(..., served=None)` has written.
      config: the model's own, such as a `LlamaConfig`.

    Raises:
      ValueError: a module that llama.cpp has not, or the package `gguf` is not installed.
    """
    path = Path(path)
    gguf = library(path)
    source = PeftFolder(folder)
    tensors: dict[str, np.ndarray] = {}
    for name in source.names():
        module, end = name.removeprefix(MODEL), name[-len(_A) :]
        weight = f"{module.removesuffix(end)}.weight"
        tensor = source.read(name).astype(np.float32)
        heads = turned_heads(weight, config)
        if end == _B and heads is not None:
            tensor = neighbours_turned(tensor, heads)
        stored = gguf_name(weight, config)
        tensors[f"{stored}.lora_{'a' if end == _A else 'b'}"] = np.ascontiguousarray(tensor)
    arch = architecture(config)
    with (
        replacing(path) as temporary,
        contextlib.closing(gguf.GGUFWriter(temporary, arch)) as writer,
    ):
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(source.config["lora_alpha"]))
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return path
