"""Published encoders and decoders alike: export a model, and compare weights with published ones.

params = merged_parts(trainable, frozen)     # or adapted.merge(trainable, frozen)
export_model(params, config, "out", source=locate("minilm"), labels=("negative", "positive"))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from lora_jax.models.families.decoders import DECODERS
from lora_jax.models.published import decoder_names, decoders, encoders, torch_names
from lora_jax.models.published.placed import Piece, Place, tensors_of
from lora_jax.models.published.tensor_files import SHARD_BYTES, relative_error
from lora_jax.models.published.weight_files import Weights
from lora_jax.partition import Parts


def export_model(
    params: Any,
    config: Any,
    folder: str | Path,
    *,
    source: str | Path | None = None,
    labels: Sequence[str] = (),
    dtype: DTypeLike | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, float]:
    """Write a model that transformers loads, by `export_classifier` or `export_decoder`.

    Args:
      config: the model's own, such as a `BertConfig`, which says what the model is.
      labels: the names of a classifier's classes.
    """
    options: Any = {"source": source, "dtype": dtype, "shard_bytes": shard_bytes}
    if config.model_type in DECODERS:
        return decoders.export_decoder(params, config, folder, **options)
    return encoders.export_classifier(params, config, folder, labels=labels, **options)


def changed_from(
    parts: Parts, paths: Sequence[str], config: Any, source: str | Path
) -> dict[str, float]:
    """How much parameters differ from the published ones that they were made from.

    Args:
      parts: the parameters; those at `paths` are compared, layer by layer.

    Returns:
      The Frobenius norm of the difference, relative to that of the published tensor, by the name of
      each tensor. Parameters that are not in `source` are left out.
    """
    if config.model_type in DECODERS:
        found, _ = decoders.open_source(source)
        # Weights finds names that are stored without the prefix; a GGUF file has whole names.
        stored = found if isinstance(found, Weights) else set(found.names())
        places = decoder_names.places
    else:
        found = stored = Weights(source, torch_names.prefix(config))
        places = torch_names.torch_places
    wanted: dict[str, list[Place]] = {path: places(path, config) for path in paths}

    def pair(piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        own = np.asarray(parts.part(piece.path, piece.layer))
        return own, piece.place.cut(found.read(piece.place.name))

    return {
        name: relative_error([pair(piece) for piece in pieces])
        for name, pieces in tensors_of(wanted).items()
        if name in stored
    }
