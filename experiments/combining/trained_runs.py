"""Finished runs of one base, each with its trained adapter, from their folders."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lora_jax as lj
from experiments.setup.config import parse
from experiments.setup.experiment import Experiment, build
from lora_jax.adapters.adapter_file import load_adapter
from lora_jax.arithmetic.one_base import require_one_base
from lora_jax.records import run_record

ADAPTER = "adapter.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRun:
    """A completed run and what it has trained."""

    folder: Path
    record: run_record.Record
    experiment: Experiment
    """As it was before training."""
    trainable: Any
    frozen: lj.Frozen

    def origin(self) -> dict[str, str]:
        """The run, and the digests of its config and of the file of its adapter."""
        with (self.folder / ADAPTER).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "run": str(self.folder),
            "variant": self.experiment.config.variant.name,
            "config_digest": self.record.config_digest,
            "adapter_sha256": digest,
        }


def read_record(folder: Path) -> run_record.Record:
    """The record of a completed run.

    Raises:
      ValueError: one line on why there is none.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no config.json")
    record = run_record.read(folder)
    if record is None or record.status != "completed":
        state = "has not ended" if record is None else f"is not completed, but {record.status}"
        raise ValueError(f"{folder} {state}; the command that began it continues it")
    if not (folder / ADAPTER).is_file():
        raise ValueError(f"{folder} has no {ADAPTER}")
    return record


def open_runs(folders: Sequence[Path]) -> list[TrainedRun]:
    """The runs of some folders; their bases share the arrays of the first.

    Raises:
      ValueError, FileNotFoundError: one line on the first run that cannot be read, or was trained
        on another base than the first.
    """
    records = [read_record(folder) for folder in folders]
    runs: list[TrainedRun] = []
    for folder, record in zip(folders, records, strict=True):
        run = _open(folder, record)
        if runs:
            first = runs[0]
            require_one_base([first.frozen, run.frozen], [str(first.folder), str(folder)])
            known = {path: first.frozen.base.get(path, x) for path, x in run.frozen.base.items()}
            run = dataclasses.replace(run, frozen=dataclasses.replace(run.frozen, base=known))
        runs.append(run)
    return runs


def _open(folder: Path, record: run_record.Record) -> TrainedRun:
    experiment = build(parse(record.config), folder=folder)
    adapter = load_adapter(folder, experiment.trainable, experiment.frozen)
    # Of the initial state, only what trains is still needed, which is small.
    experiment = dataclasses.replace(experiment, frozen=adapter[1])
    return TrainedRun(folder, record, experiment, *adapter[:2])
