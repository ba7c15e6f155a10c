"""Instruction tasks in Alpaca's format: your own data, or Alpaca itself."""

from collections.abc import Mapping
from pathlib import Path

from lora_jax.data.sources import instructions
from lora_jax.data.tasks.prompts import Prompts
from lora_jax.data.tasks.text_task import TextTask
from lora_jax.suggest import require_known

FILES = ("train", "validation", "extra")
OFFICIAL = "alpaca_data.json"
HELD_OUT = 2000
"""How many of Alpaca's 52,002 examples alpaca-lora holds out."""


def load(
    name: str,
    folder: str | Path = "",
    files: Mapping[str, str] | None = None,
    validation: int = 0,
) -> TextTask:
    """Load instructions, each with an `output` and an optional `input`, from `.json` or `.jsonl`.

    Args:
      files: paths `train` (default: `alpaca_data.json`), `validation` and `extra` (another domain
        that is evaluated too); relative paths start from `folder`. Empty ones count as absent.
      validation: hold out this many examples of train as the validation part, instead of the
        `validation` file. Without either, 2,000 are held out.

    Raises:
      FileNotFoundError: a file does not exist.
      ValueError: one line that names the file and the wrong entry.
    """
    given = {key: each for key, each in (files or {}).items() if each}
    for key in given:
        require_known(key, FILES, f"data.files has no '{key}'")
    paths = {key: Path(folder) / each for key, each in ({"train": OFFICIAL} | given).items()}
    if validation:
        paths.pop("validation", None)
    parts = {key: _examples(f"{name}/{key}", path) for key, path in paths.items()}
    extra = {"extra": parts["extra"]} if "extra" in parts else {}
    if "validation" in parts:
        return TextTask(name, parts["train"], parts["validation"], extra)
    if not validation and len(parts["train"]) <= HELD_OUT:
        raise ValueError(
            f"{paths['train']} has {len(parts['train'])} examples, and {HELD_OUT} are to be held "
            "out for validation: give data.files.validation, or a smaller data.validation"
        )
    whole = TextTask(name, parts["train"], parts["train"])
    held = whole.hold_out(validation or HELD_OUT)
    return TextTask(name, held.train, held.validation, extra)


def _examples(name: str, path: Path) -> Prompts:
    entries = instructions.read(path, ("instruction", "output"))
    return Prompts(
        name=name,
        prompts=[instructions.prompt(each["instruction"], each["input"]) for each in entries],
        completions=[each["output"] for each in entries],
        ids=[str(place) for place in range(len(entries))],
    )
