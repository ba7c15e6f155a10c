"""Instruction data in Alpaca's format: `instruction`, `input` and `output`, in JSON or JSONL.

The two prompts are Alpaca's (Taori et al., 2023) and end in a line end, as in alpaca-lora and its
successors. In LLM-Adapters and DoRA, every line but the first is indented by 16 spaces, by a slip
of their source code that is not repeated here.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_jax.data.sources import rows
from lora_jax.files import json_text
from lora_jax.suggest import nearest

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


def prompt(instruction: str, given: str = "") -> str:
    """The prompt for an instruction and its input, if there is one."""
    if given:
        return _WITH_INPUT.format(instruction=instruction, input=given)
    return _PLAIN.format(instruction=instruction)


def bare(text: str) -> str:
    """A prompt's question without Alpaca's words around it, which a chat template replaces."""
    start, end = _PLAIN.split("{instruction}")
    if text.startswith(start) and text.endswith(end):
        return text[len(start) : -len(end)]
    start, between, end = re.split(r"\{instruction\}|\{input\}", _WITH_INPUT)
    if text.startswith(start) and text.endswith(end) and between in text:
        return text[len(start) : -len(end)].replace(between, "\n\n", 1)
    return text


def read(
    path: Path, needed: Sequence[str], optional: Sequence[str] = ("input",)
) -> list[dict[str, str]]:
    """The entries of a `.json` file (one list of objects) or a `.jsonl` file: texts by field.

    An `optional` field that is missing or null is read as an empty text.

    Raises:
      FileNotFoundError: no such file.
      ValueError: one line that names the file and the wrong entry or line.
    """
    if path.suffix.lower() == ".jsonl":
        entries = [(f"{path}, line {row.line}", row.values) for row in rows.read_rows(path)]
    else:
        entries = [(f"{path}, entry {number}", each) for number, each in enumerate(_list(path), 1)]
    if not entries:
        raise ValueError(f"{path} has no entries")
    return [_entry(where, values, needed, optional) for where, values in entries]


def _list(path: Path) -> list[Any]:
    if path.suffix.lower() != ".json":
        raise ValueError(f"{path} is not named .json or .jsonl")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        found = json_text.read(path)
    except ValueError as error:
        raise ValueError(f"{error} (if each line is an entry, name it .jsonl)") from None
    if not isinstance(found, list):
        raise ValueError(f"{path} is not a list of entries")
    return found


def _entry(
    where: str, values: Any, needed: Sequence[str], optional: Sequence[str]
) -> dict[str, str]:
    if not isinstance(values, dict):
        raise ValueError(f"{where} is not an object")
    found = {}
    for name in (*needed, *optional):
        value = values.get(name)
        if name in optional and value is None:
            found[name] = ""
            continue
        if name not in values:
            raise ValueError(f"{where} has no '{name}'; nearest: {nearest(name, values)}")
        if not isinstance(value, str):
            raise ValueError(f"{where}: '{name}' is {value!r}, not a text")
        found[name] = value
    return found
