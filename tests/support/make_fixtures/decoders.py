"""Writes tests/fixtures/decoders.npz: what torch's Llamas, Mistral, Qwens and GPT-2 compute.

Needs torch and transformers:

    PYTHONPATH=. python tests/support/make_fixtures/decoders.py

Weights are not stored: both sides draw them from a seed and the tensor's name. The upper half of
the file needs numpy only, and the tests use it.
"""

import contextlib
import json
import zlib
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parents[2] / "fixtures"

_TINY = {
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
_WINDOWS = {"use_sliding_window": True, "sliding_window": 3}


def _llama(**changes):
    return {**_TINY, "model_type": "llama", "pad_token_id": None, **changes}


def _scaled(rope_scaling, **changes):
    return _llama(hidden_size=64, rope_scaling=rope_scaling, rope_theta=500.0, **changes)


def _gpt2(**changes):
    sizes = {"vocab_size": 23, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    return {**sizes, **tokens, "model_type": "gpt2", **changes}


# name -> config.json
CASES = {
    "llama": _llama(),
    "llama_biases": _llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama_linear": _llama(rope_scaling={"type": "linear", "factor": 4.0}),
    "llama_dynamic": _llama(rope_scaling={"type": "dynamic", "factor": 2.0}),
    "llama3": _scaled(_LLAMA3, tie_word_embeddings=True),
    "llama_yarn": _scaled(_YARN),
    "llama_yarn_smooth": _scaled(
        {**_YARN, "truncate": False, "beta_fast": 20.0, "mscale": 0.7, "mscale_all_dim": 1.3}
    ),
    "mistral": {**_TINY, "model_type": "mistral", "sliding_window": 3, "head_dim": 6},
    "qwen2": {**_TINY, "model_type": "qwen2", "num_hidden_layers": 3, "max_window_layers": 1}
    | _WINDOWS,
    "qwen3": {**_TINY, "model_type": "qwen3", "head_dim": 6, "tie_word_embeddings": True},
    "qwen3_windows": {**_TINY, "model_type": "qwen3", "head_dim": 4, "attention_bias": True}
    | {**_WINDOWS, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": _gpt2(),
    "gpt2_untied": _gpt2(n_inner=20, activation_function="relu", tie_word_embeddings=False),
}


def random_tensors(shapes, seed):
    """Tensors by name; products keep the size of what passes through, norms are near one."""
    tensors = {}
    for name, shape in shapes.items():
        draw = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode())).standard_normal(shape)
        if name.endswith("bias"):
            draw = 0.3 * draw
        elif len(shape) == 1:
            draw = 1 + 0.3 * draw
        elif "embed_tokens" not in name and ".wte" not in name and ".wpe" not in name:
            inputs = shape[0] if ".c_" in name else shape[1]
            draw = 1.5 * draw / np.sqrt(inputs)
        tensors[name] = draw
    return tensors


def random_inputs(config, seed, batch=4, tokens=9):
    """ids, mask, positions: two full rows, one padded on the left, one on the right.

    Positions start anywhere and skip, which no mask is to notice.
    """
    random = np.random.RandomState(seed)
    mask = np.ones((batch, tokens), np.int32)
    for row in range(2, batch):
        cut = random.randint(1, tokens // 2)
        mask[row, slice(0, cut) if row % 2 else slice(-cut, None)] = 0
    ids = random.randint(0, config["vocab_size"], (batch, tokens)).astype(np.int32)
    steps = random.randint(1, 3, (batch, tokens))
    positions = (np.cumsum(steps, axis=1) - steps[:, :1] + 3 * np.arange(batch)[:, None]) % 32
    return ids, mask, positions.astype(np.int32)


# ---- torch -------------------------------------------------------------------------------------


@contextlib.contextmanager
def exactly():
    """Lets transformers compute in float64 what it computes in float32 whatever the model is in.

    These are the norms, the rotary frequencies and the softmax; they name `torch.float32`.
    """
    from unittest import mock

    import torch

    with mock.patch.multiple(torch, float=torch.float64, float32=torch.float64):
        yield


def torch_decoder(config):
    """transformers' language model for a config.json, in float64, dropout off."""
    import transformers

    settings = dict(config)
    configuration = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    with exactly():
        model = transformers.AutoModelForCausalLM.from_config(
            configuration, attn_implementation="eager"
        )
    return model.double().eval()


def torch_random(config, seed):
    """A torch decoder with `random_tensors`, and the shapes of its tensors."""
    import torch

    model = torch_decoder(config)
    tied = set(model.state_dict()) - {name for name, _ in model.named_parameters()}
    shapes = {k: list(v.shape) for k, v in model.state_dict().items() if k not in tied}
    tensors = random_tensors(shapes, seed)
    state = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) == tied and not unexpected
    model.tie_weights()
    return model, shapes


def torch_logits(model, ids, mask=None, positions=None):
    """Logits (B, T, vocabulary), in the precision of the model."""
    import torch

    named = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    inputs = {k: torch.tensor(v, dtype=torch.long) for k, v in named.items() if v is not None}
    exact = exactly() if model.dtype == torch.float64 else contextlib.nullcontext()
    with torch.no_grad(), exact:
        return model(**inputs, use_cache=False).logits.numpy()


def _main():
    shapes, arrays = {}, {}
    for seed, (name, config) in enumerate(CASES.items()):
        model, shapes[name] = torch_random(config, seed)
        ids, mask, positions = random_inputs(config, seed)
        logits = torch_logits(model, ids, mask, positions)
        arrays[name] = logits[mask == 1][::2]  # half of the tokens say enough
    (FIXTURES / "decoders_shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
    np.savez_compressed(FIXTURES / "decoders.npz", **arrays)


if __name__ == "__main__":
    _main()
