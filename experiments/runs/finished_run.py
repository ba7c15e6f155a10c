"""A finished run with its model and its adapter, from its folder."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import lora_jax as lj
from configs.settings import ClassifierConfig, RunConfig, TextConfig
from experiments.runs.packing import require_loose
from experiments.setup import from_config
from experiments.setup.config import parse
from experiments.setup.experiment import Experiment, build
from experiments.setup.load import load, read_texts
from lora_jax import data
from lora_jax.adapters.adapter_file import load_adapter
from lora_jax.files.tree_file import load_tree
from lora_jax.messages import nearest_path
from lora_jax.methods.initialization import loftq_steps
from lora_jax.models.published.location import locate
from lora_jax.records import run_record
from lora_jax.transform.placement import variants_of

ADAPTER = "adapter.safetensors"
SHOWN = 5
"""How many runs of a folder a message names."""


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """A completed run, and what it has trained."""

    folder: Path
    record: run_record.Record
    experiment: Experiment
    """As it was before training; a run with `start_from` has its own fresh start here."""
    trainable: Any
    frozen: lj.Frozen

    @property
    def config(self) -> RunConfig:
        return self.experiment.config

    @property
    def source(self) -> Path:
        """The folder or GGUF file of the base model."""
        return locate(self.config.model.name)

    @property
    def shape(self) -> Any:
        """The model's own config, such as a `BertConfig`, with the run's dropout of the head."""
        found = self.experiment.texts.shape
        if isinstance(self.config, ClassifierConfig) and self.config.model.head_dropout is not None:
            return found.with_head_dropout(self.config.model.head_dropout)
        return found

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes; empty for a regression and for a language model."""
        return tuple(getattr(self.experiment.texts.task, "label_names", None) or ())


def read_record(folder: Path, flag: str = "run") -> run_record.Record:
    """The record of a completed run.

    Args:
      flag: what names the folder, for messages; empty in Python.

    Raises:
      ValueError, FileNotFoundError: one line on why there is none.
    """
    given = f"--{flag}={folder}" if flag else str(folder)
    require_loose(folder)
    if folder.is_file():
        inside = (folder.parent / "config.json").is_file()
        raise ValueError(
            f"{given} is a file: give the folder of a run{f', {folder.parent}' if inside else ''}"
        )
    if not folder.is_dir():
        near = nearest_path(folder, lambda each: (each / "record.json").is_file())
        raise FileNotFoundError(f"{given}: no such folder{near}")
    if not (folder / "config.json").is_file():
        runs = sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("record.json"))
        more = f" and {len(runs) - SHOWN} more" if len(runs) > SHOWN else ""
        inside = f"; the runs in it: {', '.join(runs[:SHOWN])}{more}" if runs else ""
        raise ValueError(f"{given} is not the folder of a run: it has no config.json{inside}")
    record = run_record.read(folder)
    if record is None:
        raise ValueError(
            f"{given} has not ended: it has no record.json; the command that began it continues it"
        )
    if record.status != "completed":
        raise ValueError(f"{given} is not completed, but {record.status}: {record.note}")
    if not (folder / ADAPTER).is_file():
        raise ValueError(f"{given} has no {ADAPTER}")
    return record


def is_completed(folder: Path) -> bool:
    """Whether a folder has the record of a completed run; a damaged record is none."""
    try:
        record = run_record.read(folder)
    except (OSError, ValueError):
        return False
    return record is not None and record.status == "completed"


def require_adapter(folder: Path) -> None:
    """Raise a ValueError if the adapter of a run that has ended is gone or damaged."""
    try:
        load_tree(folder)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"--workdir={folder}: its run has ended, but {error}; train it again in a new folder"
        ) from error


def changed_data(config: RunConfig, record: run_record.Record) -> bool:
    """Whether a run's examples are not those that the files of its config have now.

    False where files are gone, as a run that has ended does not need them, and where the config
    names none.
    """
    if not config.data.files.get("train"):
        return False
    try:
        with warnings.catch_warnings(action="ignore"):
            return read_texts(config).task.digest() != record.data_digest
    except (ValueError, OSError):
        return False


def open_run(
    folder: Path, record: run_record.Record, task: data.Task | data.TextTask | None = None
) -> FinishedRun:
    """Load a run's data and base model, and the adapter that it has saved.

    Its adapter is complete, so a run that started from another needs no longer have that one.

    Args:
      task: what stands for the run's data, which then need not be there.

    Raises:
      ValueError, FileNotFoundError: one line on what is not as it was in the run.
    """
    alone, shared = parse({**record.config, "start_from": None}), None
    if task is not None:
        alone = _without_data(alone, record.steps)
        shared = load(alone, texts=read_texts(alone, task))
    experiment = build(alone, shared, folder=folder)
    if record.reading_digest not in (None, experiment.reading_digest):
        warnings.warn(
            f"{record.config['model']['name']}: its config.json or its tokenizer has changed since "
            f"the run in {folder}; what the model computes here may differ from its scores",
            stacklevel=2,
        )
    named = alone.data.files.get("train")
    if named and experiment.texts.task.digest() != record.data_digest:
        warnings.warn(
            f"the examples of the run in {folder} are not those of its files now: the files have "
            "changed, or are split in another way; it may be scored on what it was trained on",
            stacklevel=2,
        )
    adapter = load_adapter(folder, experiment.trainable, experiment.frozen)
    experiment = dataclasses.replace(experiment, config=parse(record.config))
    return FinishedRun(folder, record, experiment, *adapter[:2])


def _without_data(config: RunConfig, steps: int) -> RunConfig:
    """The config with the steps of its run, however few examples there are, and nothing to score.

    An adapter that no training here made has none: their number matters to no adapter of these.
    """
    wanted = steps or from_config.FEW_STEPS
    given = {**config.plain, "train": {**config.plain["train"], "epochs": wanted}}
    given["train"]["max_steps"] = wanted
    if isinstance(config, TextConfig):
        given["generate"] = {**config.plain["generate"], "scored": 0}
    return parse(given)


def replaced(run: FinishedRun) -> str | None:
    """The path of a weight in whose place the run has stored another matrix (LoftQ), if any."""
    for each in run.frozen.spec.adapted:
        steps = [loftq_steps(getattr(v, "initialization", "")) for v in variants_of(each.layers)]
        if each.storage and max(steps) > 1:
            return each.use.path
    return None
