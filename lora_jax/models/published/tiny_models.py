"""Tiny models of random weights, each in a folder like a published one, to try a command with.

They are made when they are first asked for, so nothing is downloaded. Their tokenizers know single
characters only. Matrices are 128 wide: PiSSA cannot take a rank above that.
"""

import hashlib
import json
import string
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from tokenizers import pre_tokenizers

from lora_jax.files.atomic import new_folder
from lora_jax.files.published_paths import cache_folder
from lora_jax.messages import require_known
from lora_jax.models import families
from lora_jax.models.published.export import write_config, write_weights
from lora_jax.partition import parts_of, path_name

_SIZES = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 520,
}
_ENCODER = _SIZES | {"vocab_size": 128, "type_vocab_size": 2, "num_hidden_layers": 4}
_TOKENS = {"vocab_size": 257, "bos_token_id": 0, "eos_token_id": 0}
_DECODER = _SIZES | _TOKENS | {"num_key_value_heads": 4}
_DEBERTA = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
_GPT2 = {"n_embd": 128, "n_inner": 128, "n_layer": 2, "n_head": 4, "n_positions": 520}
MODELS = {
    "tiny-minilm": {**_ENCODER, "model_type": "bert"},
    "tiny-roberta": {**_ENCODER, "model_type": "roberta"},
    "tiny-deberta": {**_ENCODER, **_DEBERTA, "model_type": "deberta-v2"},
    "tiny-gpt2": {**_GPT2, **_TOKENS, "model_type": "gpt2"},
    "tiny-smollm2": {**_DECODER, "model_type": "llama"},
    "tiny-llama": {**_DECODER, "model_type": "llama"},
    "tiny-mistral": {**_DECODER, "model_type": "mistral"},
}
"""The config.json of each, by name."""
_END = "<|endoftext|>"


def folder_of(name: str) -> Path:
    """The folder of a tiny model in the user's cache, which is made if it is not there.

    Raises:
      ValueError: no such model.
    """
    require_known(name, MODELS, f"unknown model '{name}'")
    digest = hashlib.sha256(json.dumps(MODELS[name]).encode()).hexdigest()
    folder = cache_folder() / "models" / f"{name}-{digest[:8]}"
    if not folder.is_dir():
        try:
            with new_folder(folder) as made:
                _write(MODELS[name], made)
        except (OSError, ValueError):
            if not folder.is_dir():  # else another process has made the same
                raise
    return folder


def _write(content: dict[str, Any], folder: Path) -> None:
    """Write a model's files: config.json, weights without a head, and a tokenizer's."""
    family = families.family_of(content)
    config = family.config.from_json(content)
    head = (2, "mean") if family.kind == "encoder" else ()
    model = nnx.eval_shape(lambda: family.model(config, *head, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)

    def drawn(keys: Any, leaf: Any) -> np.ndarray:
        kind = path_name(keys).rpartition("/")[2]
        if kind in ("kernel", "embedding"):
            return (0.1 * random.standard_normal(leaf.shape)).astype(leaf.dtype)
        return np.full(leaf.shape, kind == "scale", leaf.dtype)

    parts = parts_of(jax.tree_util.tree_map_with_path(drawn, nnx.state(model)))
    paths = [path for path in parts.shapes if not path.startswith("classifier/")]
    write_config(folder, config, None, {"architectures": [family.architecture]})
    write_weights(folder, parts, {path: families.places(path, config) for path in paths})
    for name, text in _tokenizer(family.kind).items():
        (folder / name).write_text(text, encoding="utf-8")


def _tokenizer(kind: families.Kind) -> dict[str, str]:
    """The files of a tokenizer, by name: of characters in lower case, or of bytes as GPT-2's."""
    if kind == "encoder":
        letters = string.ascii_lowercase + string.digits + string.punctuation
        inside = [f"##{each}" for each in string.ascii_lowercase + string.digits]
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *inside]
        return {"vocab.txt": "\n".join(words) + "\n"}
    tokens = [_END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return {
        "vocab.json": json.dumps({token: i for i, token in enumerate(tokens)}),
        "merges.txt": "#version: 0.2\n",
        "tokenizer_config.json": json.dumps({"tokenizer_class": "GPT2Tokenizer"}),
    }
