"""A BERT of a few thousand weights beside its word embeddings, in a folder like a published one."""

import json
import shutil
from pathlib import Path

import jax
from flax import nnx

from lora_jax.models import pretrained
from lora_jax.models.families import FAMILIES

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def write(folder: Path) -> Path:
    """The folder, with random weights and the tokenizer of all-MiniLM-L6-v2."""
    source = pretrained.locate("minilm")
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".txt") and path.is_file():
            shutil.copy(path, folder)
    content = json.loads((source / "config.json").read_text(encoding="utf-8")) | SIZES
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    config = pretrained.read_config(folder)
    build = FAMILIES[config.model_type].classifier
    model = build(config, 2, "mean", rngs=nnx.Rngs(0))
    leaves, treedef = jax.tree.flatten(nnx.state(model))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    pretrained.export_classifier(jax.tree.unflatten(treedef, drawn), config, folder)
    return folder
