"""Small GGUF files, written by llama.cpp's own package as its conversion writes them."""

import gguf
import numpy as np
from flax import nnx
from published_names import to_torch_names

TYPES = gguf.GGMLQuantizationType


def tensors_in_transformers(model):
    """A decoder's tensors by their names in transformers, in transformers' layout."""
    tensors = to_torch_names(nnx.state(model), model.config)
    return {name: each.astype(np.float32) for name, each in tensors.items()}


def permuted(weights, heads):
    """`permute` of llama.cpp's convert_hf_to_gguf.py."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def as_converted(model, arch):
    """The tensors as llama.cpp's conversion lays them out, under the names that its package has."""
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config.num_hidden_layers)
    for name, tensor in tensors_in_transformers(model).items():
        if arch == "llama" and ".q_proj." in name:
            tensor = permuted(tensor, config.num_attention_heads)
        elif arch == "llama" and ".k_proj." in name:
            tensor = permuted(tensor, config.num_key_value_heads)
        elif arch == "gpt2" and ".c_" in name and tensor.ndim == 2:
            tensor = tensor.T
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        yield stored, np.ascontiguousarray(tensor)


def metadata_of(config, arch):
    """What the conversion writes of a config, by key."""
    gpt2 = arch == "gpt2"
    epsilon = "layer_norm_epsilon" if gpt2 else "layer_norm_rms_epsilon"
    own = {
        "context_length": config.n_positions if gpt2 else config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.n_inner if gpt2 else config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.n_head if gpt2 else config.num_attention_heads,
        f"attention.{epsilon}": config.layer_norm_epsilon if gpt2 else config.rms_norm_eps,
    }
    if not gpt2:
        own |= {
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
            "rope.dimension_count": config.head_dim,
            "rope.freq_base": config.rope.rope_theta,
        }
    if config.sliding_window is not None:
        own["attention.sliding_window"] = config.sliding_window
    ends = {"bos": config.bos_token_id, "eos": config.eos_token_id[0]}
    ids = {f"tokenizer.ggml.{k}_token_id": v for k, v in ends.items()}
    return {f"{arch}.{key}": value for key, value in own.items()} | ids


def write_gguf(path, arch, metadata, tensors=()):
    """A file of metadata by key and of tensors: name, array, and the type of raw blocks if any."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        if value is None:
            continue
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    for name, array, *raw in tensors:
        writer.add_tensor(name, array, raw_dtype=raw[0] if raw else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_decoder(path, model, arch="llama", type=TYPES.F32, metadata=None, **replaced):
    """A decoder's file, its matrices of one type. `replaced` tensors stand for others; None: none.

    In `replaced`, "__" is written for ".".
    """
    replaced = {name.replace("__", "."): array for name, array in replaced.items()}
    tensors = [(k, v) for k, v in as_converted(model, arch) if k not in replaced]
    tensors += [(name, array) for name, array in replaced.items() if array is not None]
    stored = []
    for name, array in tensors:
        exact = array.ndim == 1 or type == TYPES.F32 or array.dtype != np.float32
        stored.append((name, array) if exact else (name, gguf.quants.quantize(array, type), type))
    own = metadata_of(model.config, arch) | (metadata or {})
    return write_gguf(path, arch, own, stored)
