"""What an exported adapter needs beside it: the base that the run has trained on."""

import re
from collections.abc import Mapping

from experiments.exports.place import Place, published
from experiments.runs.finished_run import FinishedRun, replaced
from lora_jax.data.tokenizing.tokenize import has_tokenizer
from lora_jax.models.published.export import changed_from
from lora_jax.models.published.weight_files import find_gguf
from lora_jax.transform.adapt import base_parts

BITSANDBYTES = {
    "nf4": "load_in_4bit=True, bnb_4bit_quant_type='nf4'",
    "nf4_double": ("load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True"),
    "int8": "load_in_8bit=True",
}
"""The arguments of transformers' BitsAndBytesConfig for each `quantize.storage`."""


def loading(run: FinishedRun, place: Place, auto: str, **options: object) -> str:
    """Lines of Python by which transformers loads the base, in the dtype and storage of the run.

    The tokenizer is loaded, too, if the base has one.

    Args:
      auto: the class, such as `AutoModelForCausalLM`.
      options: its arguments.
    """
    where, of_file = repr(place.base(run)), ""
    classes, options = [auto], {**options, "dtype": run.config.model.dtype}
    arguments = "".join(f", {name}={value!r}" for name, value in options.items())
    if (gguf := place.gguf(run)) is not None:
        where, of_file = repr(gguf[0]), f", gguf_file={gguf[1]!r}"
    elif run.config.quantize.storage != "none":  # transformers quantises no GGUF file again
        stored = BITSANDBYTES[run.config.quantize.storage]
        arguments += f",\n    quantization_config=BitsAndBytesConfig({stored})"
        classes.append("BitsAndBytesConfig")
    lines = [f"base = {auto}.from_pretrained({where}{of_file}{arguments})"]
    if has_tokenizer(run.source):
        classes.append("AutoTokenizer")
        lines = [f"tokenizer = AutoTokenizer.from_pretrained({where}{of_file})", *lines]
    return "\n".join([f"from transformers import {', '.join(sorted(classes))}\n", *lines])


def quantization_error(run: FinishedRun) -> dict[str, float]:
    """How far a quantised base is from the published one, by tensor (see `changed_from`)."""
    paths = [each.use.path for each in run.frozen.spec.placements if each.storage]
    return changed_from(base_parts(run.frozen), paths, run.shape, run.source) if paths else {}


def quantised_lines(run: FinishedRun, errors: Mapping[str, float]) -> list[str]:
    """What users of an adapter must know of the quantised base that it was trained on.

    Args:
      errors: those of `quantization_error`.
    """
    if not errors:
        return []
    said = f"the adapter was trained on a base quantised as {run.config.quantize.storage}"
    far = "how far each stored weight is from the published one, relative Frobenius errors"
    return [f"{said}; {far}:", *by_kind(errors)]


def file_lines(run: FinishedRun) -> list[str]:
    """What users of an adapter must know of a base with a published name that a file was read for.

    SmolLM2, for one, comes from a GGUF file of 4-bit weights.
    """
    file, name = find_gguf(run.source), published(run)
    if file is None or name is None:
        return []
    return [f"the adapter was trained on the weights of {file.name}; those of {name} may differ"]


def require_published_base(run: FinishedRun) -> None:
    """Raise a ValueError if the run stored another matrix than the published one (LoftQ)."""
    if (path := replaced(run)) is not None:
        raise ValueError(
            f"LoftQ has quantised another matrix in the place of '{path}', so the "
            "adapter does not fit the published base: --as=merged"
        )


def by_kind(errors: Mapping[str, float]) -> list[str]:
    """A line for the weights of all layers: the least and the largest error."""
    kinds: dict[str, list[float]] = {}
    for name, error in errors.items():
        kinds.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(error)
    return [f"  {kind} {min(each):.2%} to {max(each):.2%}" for kind, each in kinds.items()]
