"""Read an adapter from a checkpoint of microsoft/LoRA, onto any function of the same weights."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_jax.interchange.load_source import Loaded, Onto, load_source
from lora_jax.interchange.loralib_file import LoralibFile
from lora_jax.interchange.names import Names, rows
from lora_jax.peft_format import Settings
from lora_jax.quantization.quantize import Storage
from lora_jax.variant import Variant


def load_loralib(
    file: str | os.PathLike,
    variant_of: Callable[[Settings], Variant],
    names: Names,
    forward: Callable[..., Any],
    params: Any,
    *args: Any,
    alpha: float | None = None,
    enable_lora: Sequence[bool] | None = None,
    quantize: Mapping[Any, Storage] | None = None,
    **kwargs: Any,
) -> Loaded:
    """A function with the adapter of a file of loralib, `torch.save(lora_state_dict(model), file)`.

    The rank of every layer follows from its shapes. What else is in the file, biases or a head,
    trains in full. Nothing in it is trusted: names, shapes and sizes are compared with the model
    before a tensor is read, and no pickle is executed. Neither torch nor loralib is needed.

    Args:
      file: a file of torch.save, or of safetensors.
      variant_of: the variant that PEFT's settings mean: `variants.from_peft`.
      names: what parameters are called in torch: `families.names_of(model.config)`, or
        `names_from_patterns`.
      forward, params, *args, **kwargs: as for `adapt` and `init`; params are the base that the
        adapter was trained on.
      alpha: the `lora_alpha` of all layers. Files of loralib do not hold it, those of
        `save_loralib` do.
      enable_lora: which parts every `MergedLinear` adapts, such as `(True, False, True)`. It is
        needed unless all three of GPT-2's are. Where the parts are one parameter here, its adapter
        has the sum of their ranks.
      quantize: how frozen weights are stored, as for `adapt`.

    Raises:
      FileNotFoundError: a missing file.
      ValueError: a file that is malformed or of another model, or something that it does not say.
        The message names the file, and the module or tensor.
    """
    onto = Onto(forward, params, names, args, kwargs, quantize)
    leaves = onto.arrays
    shapes = {path: x.shape[names.stacked(path) :] for path, x in leaves.items()}
    source = LoralibFile(Path(file), alpha, enable_lora)
    found = source.sort(rows(names, leaves), shapes)
    return load_source(source, found, variant_of, onto)
