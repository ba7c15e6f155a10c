"""What an exported adapter needs beside it: the base that the run has trained on."""

import re
from collections.abc import Mapping

from experiments.runs.finished_run import FinishedRun
from lora_jax.methods import loftq
from lora_jax.models.published.any_family import changed_from
from lora_jax.models.published.location import hub_name
from lora_jax.models.published.weight_files import find_gguf
from lora_jax.transform.merge_parts import base_parts
from lora_jax.transform.placement import variants_of

BITSANDBYTES = {
    "nf4": "load_in_4bit=True, bnb_4bit_quant_type='nf4'",
    "nf4_double": ("load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True"),
    "int8": "load_in_8bit=True",
}
"""The arguments of transformers' BitsAndBytesConfig for each `quantize.storage`."""


def base_name(run: FinishedRun) -> str:
    """What others load the base by: its name on the Hub, or the path of its folder or file."""
    return hub_name(run.config.model.name) or str(run.source.absolute())


def base_loading(run: FinishedRun, auto: str, **options: object) -> str:
    """A line of Python by which transformers loads the base, in the dtype of the run.

    Args:
      auto: the class, such as `AutoModelForCausalLM`.
    """
    where, given = base_name(run), {**options, "dtype": run.config.model.dtype}
    if (gguf := find_gguf(run.source)) is not None:
        where, given = str(gguf.parent.absolute()), {"gguf_file": gguf.name, **given}
    arguments = "".join(f", {name}={value!r}" for name, value in given.items())
    return f"base = {auto}.from_pretrained({where!r}{arguments})"


def quantization_error(run: FinishedRun) -> dict[str, float]:
    """How far a quantised base is from the published one, by tensor (see `changed_from`)."""
    paths = [each.use.path for each in run.frozen.spec.placements if each.storage]
    return changed_from(base_parts(run.frozen), paths, run.shape, run.source) if paths else {}


def quantised_lines(run: FinishedRun, errors: Mapping[str, float], peft: bool) -> list[str]:
    """What users of an adapter must know of the quantised base that it was trained on.

    Args:
      errors: those of `quantization_error`.
      peft: whether transformers loads the base, and can quantise it in the same way.
    """
    if not errors:
        return []
    storage = run.config.quantize.storage
    said = f"the adapter was trained on a base quantised as {storage}"
    if peft and find_gguf(run.source) is None:  # transformers quantises no GGUF file again
        likewise = f"quantization_config=BitsAndBytesConfig({BITSANDBYTES[storage]})"
        said += f"; load it likewise: {likewise}"
    far = "how far each stored weight is from the published one, relative Frobenius errors"
    return [f"{said}; {far}:", *by_kind(errors)]


def require_published_base(run: FinishedRun) -> None:
    """Raise a ValueError if the run stored another matrix than the published one (LoftQ)."""
    for each in run.frozen.spec.adapted:
        steps = [loftq.steps(getattr(v, "initialization", "")) for v in variants_of(each.layers)]
        if each.storage and max(steps) > 1:
            raise ValueError(
                f"LoftQ has quantised another matrix in the place of '{each.use.path}', so the "
                "adapter does not fit the published base: --as=merged"
            )


def by_kind(errors: Mapping[str, float]) -> list[str]:
    """A line for the weights of all layers: the least and the largest error."""
    kinds: dict[str, list[float]] = {}
    for name, error in errors.items():
        kinds.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(error)
    return [f"  {kind} {min(each):.2%} to {max(each):.2%}" for kind, each in kinds.items()]
