"""Read an adapter from a Hugging Face PEFT folder, onto any function of the same weights."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from lora_jax.interchange.load_source import Loaded, Onto, load_source
from lora_jax.interchange.names import Names, rows
from lora_jax.interchange.peft_folder import PeftFolder, sort_tensors
from lora_jax.interchange.source import TensorNames
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
    model before a tensor is read, and no pickle is executed.

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
    reader = PeftReader(variant_of, names, forward, params, *args, quantize=quantize, **kwargs)
    return reader(folder)


class PeftReader:
    """`load_peft` of many folders onto one function: `PeftReader(...)(folder)`.

    The function is traced once. Folders of one structure (methods, settings, targets, ranks) share
    the arrays that no folder has, the base among them, quantised or not; the first of a structure
    takes longest. Threads may share a reader.

    Args:
      variant_of, names, forward, params, *args, quantize, **kwargs: as for `load_peft`.
    """

    def __init__(
        self,
        variant_of: Callable[[Settings], Variant],
        names: Names,
        forward: Callable[..., Any],
        params: Any,
        *args: Any,
        quantize: Mapping[Any, Storage] | None = None,
        **kwargs: Any,
    ) -> None:
        self._variant_of, self._names = variant_of, names
        self._onto = Onto(forward, params, names, args, kwargs, quantize)

    def __call__(self, folder: str | os.PathLike) -> Loaded:
        """The adapter of a folder; raises as `load_peft`."""
        source, onto = PeftFolder(folder), self._onto
        found = sort_tensors(source, rows(self._names, onto.arrays), onto.tied)
        _check_wrapped(source, found, self._names)
        return load_source(source, found, self._variant_of, onto)


def _check_wrapped(source: PeftFolder, found: TensorNames, names: Names) -> None:
    """Raise a ValueError for an adapter that does nothing in PEFT."""
    for module in found.adapters:
        if module in names.unwrapped and module not in found.tokens:
            raise ValueError(
                f"{source.label()}: the adapter of '{module}' does nothing in PEFT, whose model "
                "reads the weight past it"
            )
