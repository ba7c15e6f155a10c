"""Our parameters' paths and transformers' tensor names: one table to read and to write.

Torch stores a linear layer's weight as (out, in) and each transformer layer separately; ours are
(in, out) and stacked. Names are those of transformers' sequence classifiers.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from lora_jax.models.families.encoders import Config
from lora_jax.models.published.placed import LEAF, Place, layer_shape
from lora_jax.models.published.tensor_files import all_tensors
from lora_jax.partition import parts_of

_ENCODER = {
    "embeddings/word": "embeddings.word_embeddings",
    "embeddings/position": "embeddings.position_embeddings",
    "embeddings/token_type": "embeddings.token_type_embeddings",
    "embeddings/norm": "embeddings.LayerNorm",
    "layers/attention/query": "encoder.layer.{}.attention.self.query",
    "layers/attention/key": "encoder.layer.{}.attention.self.key",
    "layers/attention/value": "encoder.layer.{}.attention.self.value",
    "layers/attention/output": "encoder.layer.{}.attention.output.dense",
    "layers/attention/norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers/up": "encoder.layer.{}.intermediate.dense",
    "layers/down": "encoder.layer.{}.output.dense",
    "layers/norm": "encoder.layer.{}.output.LayerNorm",
}
_DEBERTA = {
    **_ENCODER,
    "embeddings/projection": "embeddings.embed_proj",
    "embeddings/relative": "encoder.rel_embeddings",
    "embeddings/relative_norm": "encoder.LayerNorm",
    "layers/attention/query": "encoder.layer.{}.attention.self.query_proj",
    "layers/attention/key": "encoder.layer.{}.attention.self.key_proj",
    "layers/attention/value": "encoder.layer.{}.attention.self.value_proj",
    "layers/attention/position_key": "encoder.layer.{}.attention.self.pos_key_proj",
    "layers/attention/position_query": "encoder.layer.{}.attention.self.pos_query_proj",
    "convolution": "encoder.conv.conv",
    "convolution/norm": "encoder.conv.LayerNorm",
}
# model_type -> the prefix of the encoder's names, the encoder's names, the head's full names
_NAMES = {
    "bert": ("bert.", _ENCODER, {"pooler": "bert.pooler.dense", "classifier": "classifier"}),
    "roberta": (
        "roberta.",
        _ENCODER,
        {"pooler": "classifier.dense", "classifier": "classifier.out_proj"},
    ),
    "deberta-v2": ("deberta.", _DEBERTA, {"pooler": "pooler.dense", "classifier": "classifier"}),
}
Model = TypeVar("Model", bound=nnx.Module)


def path_of(key_path: tuple[Any, ...]) -> str:
    """JAX's key path as a/b/c, without NNX's final `value`."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/").removesuffix("/value")


def filled(model: Model, value: Callable[[str, Any], Any]) -> Model:
    """The model with `value(path, parameter)` in place of each parameter."""
    graph, params = nnx.split(model)
    values = jax.tree_util.tree_map_with_path(lambda keys, x: value(path_of(keys), x), params)
    return nnx.merge(graph, values)


def prefix(config: Config) -> str:
    """The prefix of the encoder's names in a checkpoint with a head, such as `bert.`."""
    return _NAMES[config.model_type][0]


def torch_names(path: str, config: Config) -> list[str]:
    """The tensors of one parameter: one for each layer if it is stacked, else a single one."""
    copies = config.num_hidden_layers if path.startswith("layers/") else 1
    return [torch_name(path, config, i) for i in range(copies)]


def torch_name(path: str, config: Config, layer: int = 0) -> str:
    """The tensor of one parameter; if it is stacked, of one layer."""
    module, _, leaf = path.rpartition("/")
    before, encoder, head = _NAMES[config.model_type]
    if leaf not in LEAF or (module not in encoder and module not in head):
        raise ValueError(f"{path!r} is not a parameter of a {config.model_type} classifier")
    name = head[module] if module in head else before + encoder[module].format(layer)
    return f"{name}.{LEAF[leaf]}"


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of each tensor of a parameter."""
    own = layer_shape(path, shape)
    return own[::-1] if path.endswith("/kernel") else own


def torch_places(path: str, config: Config) -> list[Place]:
    """The places of one parameter, in the order of `torch_names`."""
    return [Place(name, path.endswith("/kernel"), None) for name in torch_names(path, config)]


def to_torch_names(params: Any, config: Config) -> dict[str, np.ndarray]:
    """The tensors, by name, of a classifier's parameters (an nnx.State or nested dicts)."""
    parts = parts_of(params)
    return all_tensors(parts, {path: torch_places(path, config) for path in parts.shapes})
