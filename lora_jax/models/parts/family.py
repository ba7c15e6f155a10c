"""What a family of models states of itself: its classes, its names in files, and its sharding.

A file of `families` has one `Family`. All that reads, writes, exports or shards models asks it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from lora_jax.models.parts.config_checks import ModelConfig
from lora_jax.partition import flatten
from lora_jax.sharding.mesh import Rules, specs_of

LEAF = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
"""The last part of a parameter's path, and of its tensor's name in a checkpoint."""
Index = tuple[slice, ...]
"""A part of an array: a slice for each axis, with both start and stop given."""


class Place(NamedTuple):
    """The place of one layer of a parameter: a tensor, whether transposed, and which third of it.

    `part` is 0, 1 or 2 for a third, None for the whole tensor.
    """

    name: str
    transposed: bool
    part: int | None

    def tensor_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The whole tensor's shape, from the shape of one layer of the parameter."""
        if self.transposed:
            return shape[::-1]
        return shape if self.part is None else (*shape[:-1], 3 * shape[-1])

    def inside(self, index: Index, shape: tuple[int, ...]) -> Index:
        """The index into the tensor, from an index into one layer of the parameter, of `shape`."""
        if self.transposed or self.part is None:
            return index[::-1] if self.transposed else index
        first = self.part * shape[-1]
        return (*index[:-1], slice(first + index[-1].start, first + index[-1].stop))

    def cut(self, tensor: np.ndarray) -> np.ndarray:
        """One layer of the parameter, as a view of the tensor."""
        if self.transposed:
            return tensor.T
        return tensor if self.part is None else np.split(tensor, 3, axis=-1)[self.part]


class Piece(NamedTuple):
    """What a tensor holds: one layer of a stacked parameter, or a parameter that is not stacked."""

    path: str
    layer: int | None
    place: Place


def tensors_of(places: Mapping[str, Sequence[Place]]) -> dict[str, list[Piece]]:
    """What each tensor holds, by its name in the order of the layers.

    It is the inverse of the table that parameters are read by.

    Args:
      places: the places of each parameter by its path, one for each layer if it is stacked.
    """
    made: dict[str, list[Piece]] = {}
    for path, each in places.items():
        for number, place in enumerate(each):
            layer = number if path.startswith("layers/") else None
            made.setdefault(place.name, []).append(Piece(path, layer, place))
    names = sorted(made, key=lambda name: made[name][0].layer or 0)
    return {name: sorted(made[name], key=lambda piece: piece.place.part or 0) for name in names}


def layer_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one layer of a stacked parameter, or of an unstacked parameter."""
    return shape[1:] if path.startswith("layers/") else shape


@dataclasses.dataclass(frozen=True)
class Gguf:
    """What GGUF files call a family and its tensors.

    Args:
      architecture: the model's name there; families that compute alike may have one in common.
      names: the files' module of each of ours; {} stands for the number of a layer.
      turns_neighbours: whether queries and keys are stored in another order, in which neighbouring
        features of a head are rotated together.
    """

    architecture: str
    names: Mapping[str, str]
    turns_neighbours: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models.

    Args:
      config: the class of its settings; the default of `model_type` is the family's name.
      model: the class of its models.
      architecture: its language model in transformers, `LlamaForCausalLM`; of an encoder, what the
        names of its classes begin with, `Bert`.
      prefix: what the names of tensors begin with, but those of the head; a checkpoint of the model
        alone omits it.
      names: transformers' module of each of ours after the prefix; {} stands for the number of a
        layer. A name that several of ours share is a tensor that holds them side by side.
      head: the same for modules outside the prefix.
      stored_in_out: whether kernels of layers are stored as (in, out), as GPT-2's are, not as
        (out, in).
      buffers: how the names of tensors end that older checkpoints store in a layer beside its
        weights: masks and frequencies.
      gguf: None for a family without such files.
    """

    config: type[ModelConfig]
    model: type[Any]
    architecture: str
    prefix: str
    names: Mapping[str, str]
    head: Mapping[str, str]
    stored_in_out: bool = False
    buffers: tuple[str, ...] = ()
    gguf: Gguf | None = None

    @property
    def model_type(self) -> str:
        """The family's name in a config.json."""
        return self.config.own_type()

    @property
    def kind(self) -> Literal["encoder", "decoder"]:
        return self.config.kind

    @property
    def layers(self) -> str:
        """What the names of the tensors of layers begin with."""
        return self.prefix + self.names["layers/attention/query"].partition("{}")[0]

    @property
    def rules(self) -> Rules:
        """How its weights are sharded over a mesh."""
        return ENCODER if self.kind == "encoder" else DECODER

    def places(self, path: str, layers: int) -> list[Place]:
        """The places of a parameter: one for each layer if it is stacked, else a single one.

        Args:
          layers: the number of the model's layers.
        """
        module, _, leaf = path.rpartition("/")
        if leaf not in LEAF or not (module in self.names or module in self.head):
            kind = "classifier" if self.kind == "encoder" else self.kind
            raise ValueError(f"{path!r} is not a parameter of a {self.model_type} {kind}")
        inside = self.names.get(module)
        name = self.head[module] if inside is None else self.prefix + inside
        together = [each for each, other in self.names.items() if other == inside]
        part = together.index(module) if len(together) > 1 else None
        stacked = path.startswith("layers/")
        transposed = leaf == "kernel" and not (stacked and self.stored_in_out)
        copies = layers if stacked else 1
        return [Place(f"{name.format(i)}.{LEAF[leaf]}", transposed, part) for i in range(copies)]


# How weights are sharded over a mesh: one axis over `fsdp`, the other over `tensor`. The first
# matrices of a block (queries, keys, values; up and gate) are sharded over `tensor` by outputs, its
# last matrix by inputs. Between the two, devices exchange nothing (Shoeybi et al. 2019,
# arXiv 1909.08053, section 3).
_LAYERS: Rules = (
    ("layers/.*(query|key|value)/kernel", P(None, "fsdp", "tensor")),
    ("layers/(up|gate)/kernel", P(None, "fsdp", "tensor")),
    ("layers/.*(output|down)/kernel", P(None, "tensor", "fsdp")),
    ("attention/(query|key|value)/bias", P(None, "tensor")),
    ("layers/(up|gate)/bias", P(None, "tensor")),
    (".*/(scale|bias)", P()),
)
DECODER: Rules = (
    ("(embedding|position)/embedding", P("tensor", "fsdp")),
    ("head/kernel", P("fsdp", "tensor")),
    *_LAYERS,
)
ENCODER: Rules = (
    ("embeddings/word/embedding", P("tensor", "fsdp")),
    (".*/embedding", P(None, "fsdp")),
    ("(projection|pooler)/kernel", P("fsdp", "tensor")),
    ("convolution/kernel", P(None, "fsdp", "tensor")),
    ("classifier/kernel", P("fsdp")),
    *_LAYERS,
)


def shardings_of(model: nnx.Module, rules: Rules, mesh: Mesh) -> dict[str, NamedSharding]:
    """The sharding of each parameter of a model, abstract or not, for loading its weights."""
    shapes = {path: leaf.shape for path, leaf in flatten(nnx.state(model))[0].items()}
    specs = specs_of(rules, shapes, mesh)
    return {path: NamedSharding(mesh, spec) for path, spec in specs.items()}
