"""Write a tiny language model as a GGUF file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lora_jax.files.gguf_file import library


def write(
    path: Path,
    *,
    context: int,
    inner: int,
    tokens: Sequence[str],
    merges: Sequence[str],
    tensors: Mapping[str, np.ndarray],
    template: str | None = None,
) -> None:
    """Write a model of Llama's family, with one layer of two heads.

    Args:
      context, inner: the most tokens, and the width inside of the MLP.
      tokens, merges: of the tokenizer. The first token begins and ends a text.
      tensors: float32, by name. `token_embd.weight` has a row for each token.
      template: the chat template.
    """
    writer = library(path).GGUFWriter(path, "llama")
    hidden = tensors["token_embd.weight"].shape[1]
    sizes = {"context_length": context, "embedding_length": hidden, "feed_forward_length": inner}
    sizes |= {"block_count": 1, "attention.head_count": 2, "attention.head_count_kv": 2}
    for name, value in sizes.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.tokens", list(tokens))
    writer.add_array("tokenizer.ggml.token_type", [3, *[1] * (len(tokens) - 1)])
    writer.add_array("tokenizer.ggml.merges", list(merges))
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 0)
    if template is not None:
        writer.add_string("tokenizer.chat_template", template)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
