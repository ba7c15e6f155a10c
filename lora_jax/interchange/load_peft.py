"""Read an adapter from a Hugging Face PEFT folder, onto any function of the same weights."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from lora_jax.interchange.load_source import Loaded, Onto, load_source
from lora_jax.interchange.names import Names, rows
from lora_jax.interchange.peft_folder import PeftFolder, sort_tensors
from lora_jax.peft_format import Settings
from lora_jax.quantization.quantize import Storage
from lora_jax.variant import Variant


def load_peft(
    folder: str | os.PathLike,
    variant_of: Callable[[Settings], Variant],
    names: Names,
    forward: Callable[..., Any],
    params: Any,
    *args: Any,
    quantize: Mapping[Any, Storage] | None = None,
    **kwargs: Any,
) -> Loaded:
    """A function with the adapter of a folder that PEFT, or `save_peft`, has written.

    Nothing in the folder is trusted: names, shapes and sizes are compared with the config and the
    model before a tensor is read, and pickles are not read.

    Args:
      variant_of: the variant that PEFT's settings mean: `variants.from_peft`.
      names: what parameters are called in torch: `families.names_of(model.config)`, or
        `names_from_patterns`.
      forward, params, *args, **kwargs: as for `adapt` and `init`; params are the base that the
        adapter was trained on.
      quantize: how frozen weights are stored, as for `adapt`.

    Raises:
      FileNotFoundError: a missing file.
      ValueError: a file that is malformed, of a method that is not here, or of another model. The
        message names the file, and the module or tensor.
    """
    source, onto = PeftFolder(folder), Onto(forward, params, names, args, kwargs, quantize)
    found = sort_tensors(source, rows(names, onto.arrays), onto.tied)
    return load_source(source, found, variant_of, onto)
