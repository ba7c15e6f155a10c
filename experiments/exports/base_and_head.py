"""What an exported adapter needs beside it: the base that it was trained on, and its head."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.runs.finished_run import FinishedRun, replaced
from lora_jax.data.tokenizing.tokenize import has_tokenizer
from lora_jax.models.published.export import changed_from
from lora_jax.models.published.location import hub_name
from lora_jax.models.published.weight_files import find_gguf
from lora_jax.transform.adapt import base_parts, merged_parts
from lora_jax.transform.placement import Frozen, Trainable

UNKNOWN = "BASE"
"""Stands on cards for a base model without a published name."""
_CACHED = r".*/models--([\w.-]+?)--([\w.-]+)/snapshots/[0-9a-f]+"
"""A folder of the Hugging Face Hub's cache."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the files of an export are, as its user names it."""

    files: str
    """The folder, or the name on the Hub."""
    here: bool
    """Whether the user is on this machine, whose paths say nothing on a card."""

    @property
    def name(self) -> str:
        """What to call the adapter."""
        return Path(self.files).resolve().name

    def base(self, run: FinishedRun) -> str:
        """What others load the base by: its name on the Hub, or the path of its folder or file."""
        if self.here:
            return hub_name(run.config.model.name) or str(run.source.absolute())
        return published(run) or UNKNOWN

    def gguf(self, run: FinishedRun) -> tuple[str, str] | None:
        """The folder and the name of the base's GGUF file, if it is one."""
        if (file := find_gguf(run.source)) is None:
            return None
        return (str(file.parent.absolute()) if self.here else UNKNOWN), file.name


def published(run: FinishedRun) -> str | None:
    """The base's name on the Hub, also where the config names a folder of the Hub's cache."""
    name = run.config.model.name
    cached = re.fullmatch(_CACHED, str(Path(name).absolute()))
    return hub_name(name) or (f"{cached[1]}/{cached[2]}" if cached else None)


def on_card(path: str) -> str:
    """A path as cards have it: of an absolute one, which is this machine's, the last name alone."""
    return Path(path).name if Path(path).is_absolute() else path


def text_on_card(said: str) -> str:
    """A line that may name absolute paths, with the last name of each alone."""
    return re.sub(r"(?<!\S)/(?:[^\s,/]+/)*([^\s,/]+)", r"\1", said)


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
    first = (
        f"the adapter was trained on a base quantised as {run.config.quantize.storage}; how far "
        "each stored weight is from the published one, relative Frobenius errors:"
    )
    return [first, *by_kind(errors)]


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


HEADS = ("pooler", "classifier")
"""What begins the paths of a head's parameters."""


def averages(run: FinishedRun) -> bool:
    """Whether the head reads the mean of the tokens, for which transformers has no class."""
    return getattr(run.config.model, "pool", "") == "mean"


def mean_head(place: str, module: str = "classifier") -> str:
    """How logits are computed by a head that reads a mean.

    Args:
      place: what holds its tensors.
      module: what they are called.
    """
    return (
        f"transformers has no class for this head: AutoModel loads the encoder, and {place} the "
        "head; logits = (mean of last_hidden_state over unmasked tokens) @ "
        f"{module}.weight.T + {module}.bias"
    )


def without_head(
    trainable: Trainable, frozen: Frozen
) -> tuple[Trainable, Frozen, dict[str, jax.Array]]:
    """A run without its head, and the head's parameters by path, as the run computes with them.

    The head is whole: what is frozen is in it, and what is adapted is merged.
    """
    parts = merged_parts(trainable, frozen)
    paths = [path for path in parts.shapes if path.partition("/")[0] in HEADS]
    head = {path: parts.part(path, None) for path in paths}

    def rest_of(arrays: dict[str, Any]) -> dict[str, Any]:
        return {path: each for path, each in arrays.items() if path not in head}

    rest = tuple(each for each in frozen.spec.placements if each.use.path not in head)
    spec = dataclasses.replace(frozen.spec, placements=rest)
    before = list(frozen.spec.groups())
    kept = [before.index(group) for group in spec.groups()]
    mine: dict[str, Any] = {name: rest_of(trainable[name]) for name in ("adapters", "params")}
    if "shared" in trainable:
        shared = {str(new): trainable["shared"].get(str(old)) for new, old in enumerate(kept)}
        mine["shared"] = {new: each for new, each in shared.items() if each is not None}
    bare = dataclasses.replace(
        frozen,
        base=rest_of(frozen.base),
        constants=rest_of(frozen.constants),
        spec=spec,
        shared=tuple(frozen.shared[old] for old in kept) if frozen.shared else (),
    )
    return mine, bare, head
