"""An adapter on disk, of whatever format, as PEFT would have it: modules, settings and tensors.

`filled` puts its tensors into what `init` gave. It works on shapes, too.
"""

import abc
import contextlib
import dataclasses
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from lora_jax.base import Kernel, WeightUse
from lora_jax.files.safetensors_bytes import SafetensorsBytes
from lora_jax.interchange.matrices import depth, kernels_of, row, variant_at
from lora_jax.interchange.names import MODEL, Names, Row
from lora_jax.methods import peft_convolutions
from lora_jax.methods.peft_joined import PARTS
from lora_jax.methods.peft_lora import BIAS
from lora_jax.models.parts.family import Place
from lora_jax.models.published.torch_bin import TorchFile
from lora_jax.peft_format import Layouts, Peft, Settings
from lora_jax.transform.adapted_weight import Shared, with_shared
from lora_jax.transform.placement import (
    Frozen,
    Placement,
    Trainable,
    base_of,
    shared_factors,
    variants_of,
    with_shared_arrays,
)
from lora_jax.variant import Factors, Variant

_FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGERS = {"I64": np.int64, "I32": np.int32}


class Source(abc.ABC):
    """A file of tensors, and what it says of them: shapes are known at once, contents on `read`."""

    path: Path
    config_path: Path
    """The file that says what the settings are, for messages."""
    config: dict[str, Any]
    before = MODEL
    """What stands before the names of modules."""
    suffixes: Mapping[str, str] = {}
    """PEFT's suffix of each of the file's, where they differ."""
    _file: SafetensorsBytes | TorchFile

    def names(self) -> list[str]:
        return list(self._file.names())

    def label(self) -> str:
        """What messages on tensors begin with."""
        return str(self.path)

    def abstract(self, name: str) -> jax.ShapeDtypeStruct:
        """The shape of a tensor of real numbers, or of indices; ValueError for any other."""
        dtype = self._file.dtype(name)
        if dtype not in (*_FLOATS, *_INTEGERS):
            raise ValueError(f"{self.path}: tensor '{name}' is {dtype}")
        return jax.ShapeDtypeStruct(self._file.shape(name), _INTEGERS.get(dtype, np.float32))

    def read(self, name: str) -> np.ndarray:
        """A tensor; ValueError if a number in it is not finite."""
        tensor = self._file.read(name)
        if not np.isfinite(tensor).all():
            raise ValueError(f"{self.path}: tensor '{name}' holds NaN or an infinity")
        return tensor

    @abc.abstractmethod
    def settings(self, module: str) -> dict[str, Any]:
        """PEFT's settings of one module."""

    @abc.abstractmethod
    def cut(self, peft: Peft, place: Place, layouts: Layouts) -> Peft:
        """The adapter of one parameter, from that of its module in torch; works on shapes, too.

        Args:
          layouts: those of its method (`Variant.peft_layouts`).
        """


@dataclasses.dataclass(frozen=True)
class TensorNames:
    """The names of an adapter's tensors, by what they belong to; who reads its file fills them."""

    adapters: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    """By module, and what follows its name."""
    rows: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    """What each of these modules is here; several parameters, where torch has joined them."""
    shared: dict[str, str] = dataclasses.field(default_factory=dict)
    """What all modules share, by what follows `base_model.`."""
    full: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    """The parameters that were trained in full, by the tensor's name; several, where joined."""
    copies: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    """The weights of the base that PEFT has saved beside their adapters, by the tensor's name."""
    biases: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    """The biases beside each weight of the model that has some, by module."""
    tokens: set[str] = dataclasses.field(default_factory=set)
    """The modules whose tokens train beside adapters of others."""
    heads: dict[str, str] = dataclasses.field(default_factory=dict)
    """The tensors of a head that is also the table, each with the table's own, its equal."""


HOST = (np.ndarray, np.generic)
"""Arrays of NumPy, and numbers, which are their layers."""


@dataclasses.dataclass(frozen=True)
class _Contents:
    """A source with the tensors that were read of it."""

    source: Source
    found: TensorNames
    settings: Mapping[str, Settings]
    names: Names
    read: Mapping[str, Any]

    @property
    def shared(self) -> dict[str, Any]:
        """The tensors that all modules share."""
        return {suffix: self.read[name] for suffix, name in self.found.shared.items()}

    def own(self, module: str) -> dict[str, Any]:
        """The tensors of one module's adapter."""
        return {suffix: self.read[name] for suffix, name in self.found.adapters[module].items()}

    def peft(self, place: Place, variant: Variant) -> Peft:
        """What the source has of one parameter's layer, an adapter of this variant."""
        module = _module(place)
        peft = Peft(self.settings[module], self.own(module), self.shared)
        return self.source.cut(peft, place, variant.peft_layouts)


def filled(
    source: Source,
    found: TensorNames,
    settings: Mapping[str, Settings],
    names: Names,
    trainable: Trainable,
    frozen: Frozen,
    read: Mapping[str, Any],
) -> tuple[Trainable, Frozen]:
    """What `init` gave, with the tensors of a source in its place.

    Raises:
      ValueError: their shapes differ, or one holds integers in the place of real numbers.
    """
    check_integers(source, found, trainable, frozen, read)
    contents = _Contents(source, found, settings, names, read)
    adapters, constants, shared = {}, {}, frozen.shared_by(trainable)
    for placement in frozen.spec.adapted:
        path = placement.use.path
        begun = Factors(trainable["adapters"][path], frozen.constants[path])
        common = shared[placement.variant]
        whole = _filled_factors(contents, placement, begun, frozen.base[path], common)
        adapters[path], constants[path] = whole
    kernels = kernels_of(frozen)
    params = _filled_params(contents, trainable["params"], constants, kernels)
    groups, every = [], frozen.shared_by_group(trainable)
    for variant, paths in frozen.spec.groups().items():
        begun = {**every[variant].constants, **every[variant].trainable}
        place = next(r.place for _, r in each_row(found.rows) if r.path == paths[0])
        with _fitting(_module(place), {**contents.shared, **contents.own(_module(place))}):
            theirs = variant.shared_from_peft(contents.peft(place, variant), begun)
        groups.append(shared_factors(variant, _like(begun, theirs, paths[0])))
    frozen = dataclasses.replace(frozen, constants=constants)
    return with_shared_arrays({"adapters": adapters, "params": params}, frozen, groups)


def _filled_factors(
    contents: _Contents, placement: Placement, begun: Factors, base: Any, common: Shared
) -> Factors:
    """The factors of one weight, layer by layer."""
    begun, stored = jax.tree.map(_in_memory, (begun, base_of(placement, base)))
    each = []
    for layer in range(depth(placement)):
        factors = row(placement, begun, layer)
        if (variant := variant_at(placement, layer)) is not None:
            place = contents.names.place(placement.use.path, layer)
            assert place is not None  # the adapter was found by its name
            like = row(placement, stored, layer)
            whole = with_shared(factors, common)
            with _fitting(_module(place), contents.own(_module(place))):
                peft = _of_matrix(contents.peft(place, variant), placement.use)
                theirs = variant.factors_from_peft(like, peft, whole)
            both = zip(theirs, common, strict=True)
            own = ({n: x for n, x in mine.items() if n not in out} for mine, out in both)
            factors = _like(factors, Factors(*own), place.name)
        each.append(factors)
    return (
        jax.tree.map(_stacked, *each) if placement.use.stack else jax.tree.map(jnp.asarray, each[0])
    )


def _of_matrix(peft: Peft, use: WeightUse) -> Peft:
    """The adapter of a weight's matrix; PEFT's of a convolution is one of kernels."""
    if not use.is_convolution:
        return peft
    if use.kernel is None:
        raise ValueError("PEFT has no such convolution")
    return peft_convolutions.from_torch(use.kernel, peft)


def _in_memory(x: Any) -> Any:
    """NumPy's view of an array on the CPU, whose layers are views: JAX would copy each of them."""
    if not isinstance(x, jax.Array) or isinstance(x, Tracer):
        return x
    here = [each.platform for each in x.devices()] == ["cpu"] and x.is_fully_addressable
    return np.asarray(x) if here else x


def _stacked(*layers: Any) -> Array:
    """Layers as one array; one by one, JAX takes longer than NumPy."""
    host = all(isinstance(x, HOST) for x in layers)
    return jnp.asarray(np.stack(layers)) if host else jnp.stack(layers)


def _filled_params(
    contents: _Contents,
    begun: Mapping[str, Any],
    constants: Mapping[str, dict[str, Any]],
    kernels: Mapping[str, Kernel],
) -> dict[str, Any]:
    """The parameters that train in full: those of the source, and biases that adapters add to."""
    found, params = contents.found, dict(begun)
    for name, one in each_row(found.full):
        mine = params[one.path]
        with _fitting(name, {name: contents.read[name]}):
            tensor = cut(one.place, contents.read[name], kernels.get(one.path))
        if contents.names.stacked(one.path):
            params[one.path] = mine.at[one.layer].set(_like(mine[0], tensor, one.path))
        else:
            params[one.path] = _like(mine, tensor, one.path)
    for module, one in each_row(lora_biases(found)):
        mine, weight = params[one.path], found.rows[module][0]
        scale = constants[weight.path]["scale"]
        scale = (scale[weight.layer] if scale.ndim else scale).astype(mine.dtype)
        name = found.adapters[module][BIAS]
        with _fitting(name, {name: contents.read[name]}):
            bias = cut(one.place, contents.read[name])
        stacked = contents.names.stacked(one.path)
        bias = _like(mine[0] if stacked else mine, bias, name)
        where = mine.at[one.layer] if stacked else mine.at[:]
        params[one.path] = where.add(scale * bias)
    return params


def cut(place: Place, tensor: Any, kernel: Kernel | None = None) -> Any:
    """One layer of a parameter as it is here, from torch's tensor."""
    if kernel is not None and place.transposed:
        return peft_convolutions.kernel_from_torch(kernel, tensor)
    tensor = tensor.T if place.transposed else tensor
    return tensor if place.part is None else jnp.split(tensor, PARTS, axis=-1)[place.part]


def lora_biases(found: TensorNames) -> dict[str, list[Row]]:
    """The biases of the layers whose adapters have one of their own, by module.

    Raises:
      ValueError: the model has no bias there.
    """
    modules = [module for module, each in found.adapters.items() if BIAS in each]
    if without := [module for module in modules if module not in found.biases]:
        raise ValueError(f"'{without[0]}' has a lora_bias, and the model has no bias there")
    return {module: found.biases[module] for module in modules}


def each_row(named: Mapping[str, list[Row]]) -> list[tuple[str, Row]]:
    return [(name, one) for name, several in named.items() for one in several]


def _module(place: Place) -> str:
    return place.name.removesuffix(".weight")


@contextlib.contextmanager
def _fitting(what: str, tensors: Mapping[str, Any]) -> Iterator[None]:
    """Say what does not fit, and its shapes.

    A method takes its tensors for what they should be. One with another number of axes fails
    wherever it is first used, in JAX, too.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        shapes = reprlib.repr({name: tuple(x.shape) for name, x in tensors.items()})
        own = str(error).partition("\n")[0] if isinstance(error, ValueError) else "they do not fit"
        raise ValueError(f"'{what}' has tensors of the shapes {shapes}: {own}") from error


def _like(mine: Any, theirs: Any, path: str) -> Any:
    """Arrays of a file in the dtypes of those that `init` gave, which have the same shapes."""
    found, wanted = (
        {jax.tree_util.keystr(keys): tuple(x.shape) for keys, x in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (theirs, mine))
    )
    for name in {**wanted, **found}:
        if found.get(name) != wanted.get(name):
            what = f"{path}{name}: the file has {found.get(name)}"
            raise ValueError(f"{what}, this model and the config ask for {wanted.get(name)}")
    return jax.tree.map(_cast, theirs, mine)


def _cast(x: Any, like: Any) -> Any:
    near = isinstance(x, HOST) and isinstance(like, HOST)
    return x.astype(like.dtype, copy=False) if near else jnp.asarray(x, like.dtype)


def check_integers(
    source: Source,
    found: TensorNames,
    trainable: Trainable,
    frozen: Frozen,
    read: Mapping[str, Any],
) -> None:
    """Refuse integers on disk where an adapter has real numbers; indices are integers.

    Raises:
      ValueError: a tensor, or its shape, has integers, and what it becomes are real numbers.
    """
    wrong = {name for name, x in read.items() if jnp.issubdtype(x.dtype, jnp.integer)}
    for placement in frozen.spec.adapted if wrong else ():
        path = placement.use.path
        factors = {**trainable["adapters"][path], **frozen.constants[path]}
        whole = {n for n, x in factors.items() if jnp.issubdtype(x.dtype, jnp.integer)}
        layouts = [each.peft_layouts for each in variants_of(placement.layers)]
        suffixes = {layout[name].name for layout in layouts for name in whole & layout.keys()}
        modules = [name for name, row in each_row(found.rows) if row.path == path]
        wrong -= {found.adapters[module].get(each) for module in modules for each in suffixes}
    if wrong:
        raise ValueError(
            f"tensor '{min(wrong)}' is {source.abstract(min(wrong)).dtype}, and an adapter's "
            "numbers are floats; only indices are integers"
        )
