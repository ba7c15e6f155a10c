"""Instructions in Alpaca's format, `instruction`, `input` and `output`, in JSON or JSONL.

They are your own data, Alpaca itself, or the sets that `commonsense` reads.

The two prompts are Alpaca's (Taori et al., 2023) and end in a line end, as in alpaca-lora and its
successors. In LLM-Adapters and DoRA, every line but the first is indented by 16 spaces, by a slip
of their source code that is not repeated here.
"""

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_jax.data.examples import Prompts
from lora_jax.data.sources import rows
from lora_jax.data.split import TooFewError, as_written, normalise
from lora_jax.data.task import TextTask

_PLAIN = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)

FILES = ("train", "validation", "extra")
OFFICIAL = "alpaca_data.json"
SITE = "https://github.com/tatsu-lab/stanford_alpaca"
HELD_OUT = 2000
"""How many of Alpaca's 52,002 examples alpaca-lora holds out."""


def load_texts(
    name: str, folder: str | Path | None, files: Mapping[str, str], validation: int = 0
) -> TextTask:
    """Load instructions, each with an `output` and an optional `input`, from `.json` or `.jsonl`.

    Args:
      files: paths `train` (default: `alpaca_data.json`), `validation` and `extra` (another domain
        that is evaluated too); relative paths start from `folder`.
      validation: hold out this many examples of train as the validation part, instead of the
        `validation` file. Without either, 2,000 are held out. Examples that share a prompt with a
        held-out one are left out of train, with a warning that counts them. In your own files,
        prompts differ if more than case or spacing differs; in `alpaca_data.json`, if their words
        differ.

    Raises:
      FileNotFoundError: a file does not exist.
      ValueError: one line that names the file and the wrong entry.
    """
    given = {"train": OFFICIAL, **files}
    paths = {key: Path(folder or "") / each for key, each in given.items()}
    if validation:
        paths.pop("validation", None)
    parts = {key: _examples(f"{name}/{key}", path) for key, path in paths.items()}
    extra = {"extra": parts["extra"]} if "extra" in parts else {}
    key = normalise if paths["train"].name == OFFICIAL else as_written
    if "validation" in parts:
        return TextTask(name, parts["train"], parts["validation"], extra, key=key)
    if not validation and len(parts["train"]) <= HELD_OUT:
        raise ValueError(
            f"{paths['train']} has {len(parts['train'])} examples, and {HELD_OUT} are to be held "
            "out for validation: give data.files.validation, or a smaller data.validation"
        )
    whole = TextTask(name, parts["train"], parts["train"], key=key)
    try:
        held = whole.hold_out(validation or HELD_OUT)
    except TooFewError as error:
        if validation:
            raise
        raise ValueError(
            f"{error}: give data.files.validation, or a smaller data.validation"
        ) from None
    if left := len(whole.train) - len(held.train) - len(held.validation):
        warnings.warn(
            f"{paths['train']}: {left} of {len(whole.train)} examples are left out, because they "
            "have the same prompt as a held-out example",
            stacklevel=2,
        )
    return dataclasses.replace(held, extra=extra)


def _examples(name: str, path: Path) -> Prompts:
    entries = [row.values for row in read(path, ("instruction", "output"))]
    return Prompts(
        name=name,
        prompts=[prompt(each["instruction"], each["input"]) for each in entries],
        completions=[each["output"] for each in entries],
        ids=[str(place) for place in range(len(entries))],
    )


def prompt(instruction: str, given: str = "") -> str:
    """The prompt for an instruction and its input, if there is one."""
    template = _WITH_INPUT if given else _PLAIN
    return template.format(instruction=instruction, input=given)


def bare(text: str) -> str:
    """A prompt's question without Alpaca's words around it, which a chat template replaces."""
    start, end = _PLAIN.split("{instruction}")
    if text.startswith(start) and text.endswith(end):
        return text[len(start) : -len(end)]
    start, between, end = re.split(r"\{instruction\}|\{input\}", _WITH_INPUT)
    if text.startswith(start) and text.endswith(end) and between in text:
        return text[len(start) : -len(end)].replace(between, "\n\n", 1)
    return text


def read(path: Path, needed: Sequence[str]) -> list[rows.Row]:
    """The entries of a `.json` file (one list of objects) or a `.jsonl` file.

    The `needed` fields are texts, and so is `input`, which is empty if it is missing or null.

    Raises:
      FileNotFoundError: no such file.
      ValueError: one line that names the file and the wrong entry or line.
    """
    found = rows.read_rows(path) if path.suffix.lower() == ".jsonl" else rows.read_list(path)
    if not found:
        raise ValueError(f"{path} has no entries")
    for row in found:
        for name in needed:
            row.text(name)
        row.values["input"] = "" if row.values.get("input") is None else row.text("input")
    return found
