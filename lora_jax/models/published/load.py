"""Load published models into our own: configs, and weights from any file, whole or by shards.

    decoder = load_decoder(locate("smollm2"), dtype=jnp.bfloat16)     # or a folder, or a .gguf file
    model, fresh = load_classifier(locate("minilm"), num_labels=2, pool="mean", key=key)

On shards, parameters are read part by part, so that no host holds a whole one.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from lora_jax.messages import naming, nearest, require_known, said
from lora_jax.models import families
from lora_jax.models.parts.causal_attention import Implementation
from lora_jax.models.parts.classifier import EncoderClassifier
from lora_jax.models.parts.decoder import Decoder
from lora_jax.models.parts.family import Index, Place, layer_shape
from lora_jax.models.parts.modules import Pool
from lora_jax.models.published.weight_files import Weights, find_gguf, read_json
from lora_jax.partition import flatten, path_name
from lora_jax.sharding.memory import check_fits

Shardings = Mapping[str, Sharding]
"""The sharding of each parameter by its path, such as `layers/attention/query/kernel`."""
Model = TypeVar("Model", bound=nnx.Module)


class Source(Protocol):
    """Tensors by their names in transformers: `Weights`, `GgufWeights`, or any other source.

    `part` is called instead of `read` for parameters on their shards.
    """

    folder: Path

    def names(self) -> Sequence[str]: ...
    def check(self, name: str, shape: tuple[int, ...]) -> None: ...
    def read(self, name: str) -> np.ndarray: ...
    def part(self, name: str, index: Index) -> np.ndarray: ...


def read_config(folder: str | Path, kind: families.Kind | None = None) -> Any:
    """The checked config of a folder's config.json, or of a GGUF file.

    Args:
      kind: that the model must have; a GGUF file holds a decoder.

    Raises:
      FileNotFoundError: no config.json.
      ValueError: it is not one of a supported family, or not of this kind.
    """
    if (gguf := find_gguf(folder)) is not None:
        if kind == "encoder":
            raise ValueError(
                f"{gguf}: GGUF files hold decoders; a classifier needs an encoder's folder"
            )
        from lora_jax.models.published.gguf import GgufFile, gguf_config

        return gguf_config(GgufFile(gguf))
    path = Path(folder) / "config.json"
    content = read_json(path)
    with naming(path):
        return families.read(content, kind)


read_decoder_config = functools.partial(read_config, kind="decoder")
read_encoder_config = functools.partial(read_config, kind="encoder")


def kind_of(folder: str | Path) -> families.Kind:
    """Whether a folder or a GGUF file holds an encoder or a decoder; errors as `read_config`."""
    return read_config(folder).kind


def open_weights(folder: str | Path, config: Any = None) -> Any:
    """The tensors of a folder or of a GGUF file, as a `Source`.

    Args:
      config: the model's own; a GGUF file has it, as `config`.
    """
    if (gguf := find_gguf(folder)) is not None:
        from lora_jax.models.published.gguf import GgufWeights

        return GgufWeights(gguf)
    return Weights(folder, families.family_of(config).prefix)


def _open_decoder(folder: str | Path) -> tuple[Source, Any]:
    """The tensors and the config of a decoder; a GGUF file is read once for both."""
    if find_gguf(folder) is not None:
        source = open_weights(folder)
        return source, source.config
    config = read_decoder_config(folder)
    return open_weights(folder, config), config


# ---- decoders ------------------------------------------------------------------------------------


def load_decoder(
    folder: str | Path,
    *,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool | str = False,
    unroll: int | None = None,
    implementation: Implementation | None = None,
    mesh: Mesh | None = None,
    shardings: Shardings | None = None,
) -> Decoder:
    """Load a published decoder, from one file of weights or from several with an index.

    `folder` may also be a GGUF file, or a folder with one and no config.json; its tensors are
    dequantised one by one. With `shardings`, one for each parameter by its path (the paths of the
    state of `read_abstract_decoder`), a process reads the parts that its devices hold, one at a
    time; from safetensors and GGUF it reads only these. Other arguments are those of `Decoder`.

    Everything is checked before weights are read or put on a device. Only non-finite values are
    found while tensors are read.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: another architecture; a corrupt file, a missing tensor, a wrong shape, a tensor
            that the model would not use (the message names the file and the tensor); `shardings`
            that do not fit; more weights than the available memory holds
            (`lora_jax.sharding.memory`); or a tensor with a non-finite value.
    """
    source, config = _open_decoder(folder)
    return decoder_from(
        source,
        config,
        dtype=dtype,
        param_dtype=param_dtype,
        remat=remat,
        unroll=unroll,
        implementation=implementation,
        mesh=mesh,
        shardings=shardings,
    )


def read_abstract_decoder(
    folder: str | Path, *, param_dtype: DTypeLike = jnp.float32, **options: Any
) -> Decoder:
    """As `load_decoder`, but it reads no weights: the decoder has shapes in their place."""
    source, config = _open_decoder(folder)
    abstract = abstract_decoder(config, param_dtype=param_dtype, **options)
    check_weights(source, abstract, config)
    return abstract


def abstract_decoder(
    config: Any, *, param_dtype: DTypeLike = jnp.float32, **options: Any
) -> Decoder:
    """The decoder of a config, with shapes in place of weights."""
    decoder = families.family_of(config, "decoder").model
    return nnx.eval_shape(
        lambda: decoder(config, param_dtype=param_dtype, rngs=nnx.Rngs(0), **options)
    )


def decoder_from(
    source: Source,
    config: Any,
    *,
    param_dtype: DTypeLike = jnp.float32,
    shardings: Shardings | None = None,
    **options: Any,
) -> Decoder:
    """The decoder of a config, with tensors from any source.

    Tensors are read one by one, cast and put into their place in the stack. Beside the model,
    memory never holds more than one stacked parameter and one tensor; with `shardings` (see
    `load_decoder`), never more than one shard of a parameter and its part of one layer's tensor.
    """
    abstract = abstract_decoder(config, param_dtype=param_dtype, **options)
    read = checked_reader(source, abstract, config, shardings)
    return filled(abstract, read)


# ---- encoders ------------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """A model, and the paths of its fresh parameters: those that its checkpoint does not hold."""

    model: EncoderClassifier
    fresh: tuple[str, ...]

    def redrawn(self, key: Array) -> EncoderClassifier:
        """The model with fresh parameters drawn from another key, as `load_classifier` does."""

        def value(path: str, leaf: Any) -> Any:
            if path not in self.fresh:
                return leaf
            drawn = _draw(key, self.fresh, path, leaf, self.model.config.initializer_range)
            return _spread(drawn, leaf.sharding) if len(leaf.sharding.device_set) > 1 else drawn

        return filled(self.model, value)


def load_classifier(
    folder: str | Path,
    *,
    num_labels: int,
    pool: Pool,
    key: Array,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    unroll: int | None = None,
    head_dropout: float | None = None,
    shardings: Shardings | None = None,
) -> Loaded:
    """Load a classifier with the encoder of a published checkpoint.

    The head (pooler and classifier) comes from the checkpoint if it has one of this shape for this
    `pool`; otherwise it is initialised from `key` and listed in `fresh`. `head_dropout` replaces
    the config's rate before the classifier. With `shardings`, one for each parameter by its path,
    fresh ones too, a process reads the parts that its devices hold, one at a time. Other arguments
    are those of the family's classifier.

    Everything is checked before weights are read or put on a device. Only non-finite values are
    found while tensors are read.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: another architecture; a corrupt file, a missing tensor, a wrong shape (the
            message names the file and the tensor); `shardings` that do not fit; more weights than
            the available memory holds (`lora_jax.sharding.memory`); or a tensor with a non-finite
            value.
    """
    config = read_encoder_config(folder)
    if head_dropout is not None:
        config = config.with_head_dropout(head_dropout)
    weights = open_weights(folder, config)
    classifier = families.family_of(config).model
    options = {"dtype": dtype, "param_dtype": param_dtype, "remat": remat, "unroll": unroll}
    abstract: EncoderClassifier = nnx.eval_shape(
        lambda: classifier(config, num_labels, pool, **options, rngs=nnx.Rngs(0))
    )
    shapes = {path: leaf.shape for path, leaf in flatten(nnx.state(abstract))[0].items()}

    # A classifier trained on the first token does not fit a mean, nor the reverse.
    same_pool = read_json(Path(folder) / "config.json").get("pool", "cls") == pool

    def fits(path: str) -> bool:
        (place,) = families.places(path, config)
        wanted = place.tensor_shape(shapes[path])
        return place.name in weights and weights.shape(place.name) == wanted

    def stored(module: str) -> bool:
        paths = (f"{module}/kernel", f"{module}/bias")
        return (same_pool or module != "classifier") and all(map(fits, paths))

    heads = ["classifier"] if pool == "mean" else ["pooler", "classifier"]
    fresh = [f"{head}/{leaf}" for head in heads if not stored(head) for leaf in ("kernel", "bias")]
    read = checked_reader(weights, abstract, config, shardings, fresh)

    def value(path: str, leaf: Any) -> Array:
        if path not in fresh:
            return read(path, leaf)
        drawn = _draw(key, fresh, path, leaf, config.initializer_range)
        return drawn if shardings is None else _spread(drawn, shardings[path])

    return Loaded(filled(abstract, value), tuple(fresh))


def _spread(array: Array, sharding: Sharding) -> Array:
    """Place a small array, which every process has whole, by a sharding."""
    whole = np.asarray(array)
    return placed(whole.shape, whole.dtype, sharding, lambda index: whole[index])


def _draw(key: Array, fresh: Sequence[str], path: str, like: Any, deviation: float) -> Array:
    """A fresh parameter: zero for a bias, else drawn from a normal distribution."""
    if path.endswith("/bias"):
        return jnp.zeros(like.shape, like.dtype)
    own = jax.random.fold_in(key, fresh.index(path))
    return deviation * jax.random.normal(own, like.shape, like.dtype)


# ---- both ----------------------------------------------------------------------------------------


def filled(model: Model, value: Callable[[str, Any], Any]) -> Model:
    """The model with `value(path, parameter)` in place of each parameter."""
    graph, params = nnx.split(model)
    values = jax.tree_util.tree_map_with_path(lambda keys, x: value(path_name(keys), x), params)
    return nnx.merge(graph, values)


def checked_reader(
    source: Source,
    abstract: nnx.Module,
    config: Any,
    shardings: Shardings | None,
    fresh: Collection[str] = (),
) -> Callable[[str, Any], Array]:
    """Check all that can be checked before weights are read; return what reads a parameter.

    Args:
      abstract: the model, with shapes in place of weights.
      fresh: the paths of parameters that the source need not have.
    """
    places = check_weights(source, abstract, config, fresh)
    leaves, _ = flatten(nnx.state(abstract))
    if shardings is not None:
        check_shardings(shardings, {path: leaf.shape for path, leaf in leaves.items()})
    check_fits(str(source.folder), leaves, shardings)

    def read(path: str, leaf: Any) -> Array:
        sharding = None if shardings is None else shardings[path]
        return parameter(source, places[path], path, leaf, sharding)

    return read


def check_weights(
    source: Source, abstract: nnx.Module, config: Any, fresh: Collection[str] = ()
) -> dict[str, list[Place]]:
    """Check that all tensors exist with the right shapes, and no others in the model's layers.

    With a tensor that the model does not use, it would compute wrongly. Such a tensor is a bias, a
    norm or an adapter that config.json does not mention, or belongs to a layer beyond the number
    there.

    Returns:
      The places of each parameter.

    Raises:
      ValueError: a missing tensor, a wrong shape, or a tensor that is not used.
    """
    leaves = {p: leaf for p, leaf in flatten(nnx.state(abstract))[0].items() if p not in fresh}
    places = {path: families.places(path, config) for path in leaves}
    for path, leaf in leaves.items():
        for place in places[path]:
            source.check(place.name, place.tensor_shape(layer_shape(path, leaf.shape)))
    family = families.family_of(config)
    known = [place.name for each in places.values() for place in each]
    bare = {name.removeprefix(family.prefix) for name in known}
    for name in source.names():
        own = name.removeprefix(family.prefix)
        inside = (family.prefix + own).startswith(family.layers)
        if inside and own not in bare and not own.endswith(family.buffers):
            raise ValueError(
                f"{source.folder}: a {config.model_type} with the {config.num_hidden_layers} "
                f"layers of config.json does not use tensor {name!r}; nearest that it uses: "
                f"{nearest(name, known)}"
            )
    return places


def check_shardings(shardings: Shardings, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a ValueError unless each parameter has a sharding that its shape allows."""
    for path in shardings:
        require_known(path, shapes, f"shardings: {path!r} is not a parameter")
    for path, shape in shapes.items():
        if path not in shardings:
            near = nearest(path, shardings)
            raise ValueError(f"shardings: parameter {path!r} has none; nearest that has: {near}")
        try:
            shardings[path].shard_shape(shape)
        except ValueError as error:
            reason = said(error)
            raise ValueError(f"shardings: parameter {path!r} of shape {shape}: {reason}") from None


def placed(
    shape: tuple[int, ...],
    dtype: DTypeLike,
    sharding: Sharding,
    read: Callable[[Index], np.ndarray],
) -> Array:
    """The array whose parts `read` returns, placed by a sharding.

    Only the parts on devices of this process are read. Each is read once, even if several devices
    hold it, and put onto them before the next is read. (`jax.make_array_from_callback` would read
    it once per device, and keep all parts until the last is read.)
    """
    devices: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        ranges = (part.indices(size) for part, size in zip(index or (), shape, strict=True))
        devices.setdefault(tuple((start, stop) for start, stop, _ in ranges), []).append(device)
    arrays = []
    for ranges, holders in devices.items():
        part = read(tuple(slice(*each) for each in ranges))
        targets = [SingleDeviceSharding(d, memory_kind=sharding.memory_kind) for d in holders]
        arrays += jax.block_until_ready([jax.device_put(part, target) for target in targets])
        del part
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype)


def parameter(
    source: Source, places: Sequence[Place], path: str, like: Any, sharding: Sharding | None
) -> Array:
    """A parameter from the tensors of its layers, or of the one place of an unstacked parameter.

    Args:
      like: an object with its shape, layers first if it is stacked, and the dtype to cast to.
      sharding: if given, only the parts on devices of this process are read.
    """
    stacked = path.startswith("layers/")
    if sharding is None:
        whole: np.ndarray = np.empty(like.shape, like.dtype)
        for layer, place in zip(whole if stacked else whole[None], places, strict=True):
            layer[...] = place.cut(source.read(place.name))
        return jnp.asarray(whole)

    def part(index: Index) -> np.ndarray:
        made = np.empty([each.stop - each.start for each in index], like.dtype)
        own, chosen = (index[1:], places[index[0]]) if stacked else (index, places)
        for layer, place in zip(made if stacked else made[None], chosen, strict=True):
            found = source.part(place.name, place.inside(own, layer_shape(path, like.shape)))
            layer[...] = found.T if place.transposed else found
        return made

    return placed(like.shape, like.dtype, sharding, part)
