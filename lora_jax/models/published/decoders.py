"""Published decoders: load them into our models, and export models in the same format.

model = load_decoder(locate("HuggingFaceTB/SmolLM2-135M"), dtype=jnp.bfloat16)
model = load_decoder(locate("smollm2"))    # or any .gguf file
export_decoder(nnx.state(model), model.config, "out")
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from lora_jax.models.families.decoders import DECODERS, decoder_family_of
from lora_jax.models.parts.causal_attention import Implementation
from lora_jax.models.parts.decoder import Decoder, check_implementation, check_remat
from lora_jax.models.published.decoder_names import (
    DecoderConfig,
    check_no_others,
    decoder_prefix,
    places,
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
from lora_jax.models.published.tensor_files import SHARD_BYTES, replaced, write_weights
from lora_jax.models.published.torch_names import filled
from lora_jax.models.published.weight_files import Weights, find_gguf, read_config
from lora_jax.models.published.written_config import write_config
from lora_jax.partition import flatten, parts_of
from lora_jax.sharding.memory import check_fits

_GENERATION = "generation_config.json"


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
    source, config = open_source(folder)
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
    source, config = open_source(folder)
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


def open_source(folder: str | Path) -> tuple[Source, DecoderConfig]:
    """The tensors and the config of a folder or a GGUF file."""
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
    params: Any,
    config: DecoderConfig,
    folder: str | Path,
    shard_bytes: int = SHARD_BYTES,
    *,
    source: str | Path | None = None,
    dtype: DTypeLike | None = None,
) -> dict[str, float]:
    """Write config.json and safetensors, which transformers and `load_decoder` read.

    Args:
      params: a decoder's, an nnx.State, nested dicts or `Parts`, with adapters already merged.
      folder: existing weight files in it are replaced, once all is written; not the source.
      source: where the decoder was loaded from; further settings are taken from its config.json,
        and its generation_config.json is copied.
      dtype, shard_bytes: as for `write_weights`, whose result is returned.
    """
    parts = parts_of(params)
    if "embedding/embedding" not in parts.shapes:
        raise ValueError("the parameters have no embedding/embedding: not those of a decoder")
    found = {path: places(path, config) for path in parts.shapes}
    changes = {
        "architectures": [DECODERS[config.model_type].architecture],
        "torch_dtype": str(jnp.dtype(dtype or parts.shapes["embedding/embedding"].dtype)),
    }
    with replaced(folder, source) as temporary:
        write_config(temporary, config, source, changes)
        if source is not None and (Path(source) / _GENERATION).is_file():
            shutil.copyfile(Path(source) / _GENERATION, temporary / _GENERATION)
        return write_weights(temporary, parts, found, dtype, shard_bytes)
