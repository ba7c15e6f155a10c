"""Published folders of small encoders with random weights, and the classifiers read from them."""

import json

import jax
import numpy as np
from flax import nnx
from make_fixtures.bert import CASES, FIXTURES, random_tensors, save_checkpoint
from safetensors.numpy import load_file
from torch_archive import save_bin

from lora_jax.models.parts.modules import Pool
from lora_jax.models.published.load import load_classifier
from lora_jax.partition import path_name

SHAPES = json.loads((FIXTURES / "bert_shapes.json").read_text())


def checkpoint(folder, name="bert", rename=lambda key: key, config=None, **replaced):
    """A published folder; a tensor replaced by None is left out, as is one renamed to None."""
    tensors = {**random_tensors(SHAPES[name], seed=0), **replaced}
    tensors = {rename(k): v for k, v in tensors.items() if v is not None and rename(k)}
    tensors = {
        k: np.asarray(v, np.float32) if v.dtype.kind == "f" else v for k, v in tensors.items()
    }
    return save_checkpoint(folder, config or CASES[name][0], tensors)


def torch_files(folder, *files):
    """A published folder made one with pytorch_model*.bin in place of its safetensors."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for i, file in enumerate(files):
        save_bin(folder / file, dict(list(tensors.items())[i :: len(files)]))
    return tensors


def load(folder, num_labels=2, pool: Pool = "cls", **options):
    return load_classifier(
        folder, num_labels=num_labels, pool=pool, key=jax.random.key(0), **options
    )


def leaves(model):
    flat = jax.tree_util.tree_leaves_with_path(nnx.state(model))
    return {path_name(path): np.asarray(leaf) for path, leaf in flat}


def assert_same(model, other, but=()):
    a, b = leaves(model), leaves(other)
    assert a.keys() == b.keys()
    for path in a.keys() - set(but):
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)
