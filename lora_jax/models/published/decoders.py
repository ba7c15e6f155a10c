"""Published decoders: load them into our models, and export models in the same format.

model = load_decoder(locate("HuggingFaceTB/SmolLM2-135M"), dtype=jnp.bfloat16)
model = load_decoder(locate("smollm2"))    # or any .gguf file
export_decoder(nnx.state(model), model.config, "out")
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from lora_jax.models.families.decoders import DECODERS, decoder_family_of
from lora_jax.models.parts.causal_attention import Implementation
from lora_jax.models.parts.decoder import Decoder, check_implementation, check_remat
from lora_jax.models.published.decoder_names import (
    DecoderConfig,
    check_no_others,
    decoder_prefix,
    places,
    tensors_of,
)
from lora_jax.models.published.gguf_config import gguf_config
from lora_jax.models.published.gguf_file import GgufFile
from lora_jax.models.published.gguf_weights import GgufWeights
from lora_jax.models.published.placed import (
    Place,
    Reader,
    Shardings,
    check_shardings,
    layer_shape,
    parameter,
)
from lora_jax.models.published.torch_names import filled
from lora_jax.models.published.weight_files import INDEX, SINGLE, Weights, find_gguf, read_config
from lora_jax.partition import flatten
from lora_jax.sharding.memory import check_fits


class Source(Reader, Protocol):
    """Tensors by their names in transformers: `Weights`, `GgufWeights`, or any other source."""

    folder: Path

    def names(self) -> Sequence[str]: ...
    def check(self, name: str, shape: tuple[int, ...]) -> None: ...


def read_decoder_config(folder: str | Path) -> DecoderConfig:
    """The checked config of a folder's config.json, or of a GGUF file."""
    if (gguf := find_gguf(folder)) is not None:
        return gguf_config(GgufFile(gguf))
    return read_config(folder, decoder_family_of)


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
    check_remat(remat)
    check_implementation(implementation)
    source, config = _source(folder)
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
    source, config = _source(folder)
    abstract = abstract_decoder(config, param_dtype=param_dtype, **options)
    _check(source, abstract, config)
    return abstract


def abstract_decoder(
    config: DecoderConfig, *, param_dtype: DTypeLike = jnp.float32, **options: Any
) -> Decoder:
    """The decoder of a config, with shapes in place of weights."""
    decoder: Any = DECODERS[config.model_type].decoder
    return nnx.eval_shape(
        lambda: decoder(config, param_dtype=param_dtype, rngs=nnx.Rngs(0), **options)
    )


def _source(folder: str | Path) -> tuple[Source, DecoderConfig]:
    if (gguf := find_gguf(folder)) is not None:
        source = GgufWeights(gguf)
        return source, source.config
    config = read_decoder_config(folder)
    return Weights(folder, decoder_prefix(config)), config


def decoder_from(
    source: Source,
    config: DecoderConfig,
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
    found = _check(source, abstract, config)
    leaves, _ = flatten(nnx.state(abstract))
    if shardings is not None:
        check_shardings(shardings, {path: leaf.shape for path, leaf in leaves.items()})
    check_fits(str(source.folder), leaves, shardings)

    def value(path: str, leaf: Any) -> Array:
        sharding = None if shardings is None else shardings[path]
        return parameter(source, found[path], path, leaf, sharding)

    return filled(abstract, value)


def _check(source: Source, abstract: Decoder, config: DecoderConfig) -> dict[str, list[Place]]:
    """Check that all tensors exist with the right shapes; return the places of each parameter."""
    found: dict[str, list[Place]] = {}
    for path, leaf in flatten(nnx.state(abstract))[0].items():
        found[path] = places(path, config)
        for place in found[path]:
            source.check(place.name, place.tensor_shape(layer_shape(path, leaf.shape)))
    known = [place.name for each in found.values() for place in each]
    check_no_others(source.names(), known, config, source.folder)
    return found


def export_decoder(
    params: Any, config: DecoderConfig, folder: str | Path, shard_bytes: int = 5_000_000_000
) -> None:
    """Write config.json and safetensors, which transformers and `load_decoder` read.

    `params` are a decoder's, an nnx.State or nested dicts, with adapters already merged. Weights of
    more than `shard_bytes` are written as several files with an index; only one of these is held in
    memory at a time. Existing weight files in `folder` are replaced.
    """
    leaves, _ = flatten(params)
    if "embedding/embedding" not in leaves:
        raise ValueError("the parameters have no embedding/embedding: not those of a decoder")
    shards = _shards(leaves, config, shard_bytes)
    content = config.to_json()
    content["architectures"] = [DECODERS[config.model_type].architecture]
    content["torch_dtype"] = str(jnp.dtype(leaves["embedding/embedding"].dtype))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / SINGLE, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
        old.unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    files = files if len(shards) > 1 else [SINGLE]
    for file, shard in zip(files, shards, strict=True):
        tensors = {name: _tensor(leaves, parts) for name, parts in shard.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


Parts = list[tuple[str, int, Any]]


def _shards(
    leaves: Mapping[str, Any], config: DecoderConfig, shard_bytes: int
) -> list[dict[str, Parts]]:
    """The tensors of each file: as many as fit, in the order of the layers."""
    shards: list[dict[str, Parts]] = [{}]
    filled = 0
    for name, parts in tensors_of(list(leaves), config):
        size = sum(_bytes(path, leaves[path]) for path, _, _ in parts)
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = parts
        filled += size
    return shards


def _tensor(leaves: Mapping[str, Any], parts: Parts) -> np.ndarray:
    arrays = []
    for path, layer, place in parts:
        leaf = leaves[path]
        array = np.asarray(leaf[layer] if path.startswith("layers/") else leaf)
        arrays.append(array.T if place.transposed else array)
    return np.ascontiguousarray(arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1))


def _bytes(path: str, leaf: Any) -> int:
    return math.prod(layer_shape(path, leaf.shape)) * leaf.dtype.itemsize
