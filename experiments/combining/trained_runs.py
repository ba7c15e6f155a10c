"""Finished runs of one base, each with its trained adapter, from their folders."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jax import Array

import lora_jax as lj
from experiments.runs.finished_run import ADAPTER, FinishedRun, open_run, read_record
from experiments.setup.from_config import make_start
from lora_jax.arithmetic.combination import require_one_base


def open_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """The runs of some folders, of the flag --runs; their bases share the arrays of the first.

    Raises:
      ValueError, FileNotFoundError: one line on the first run that cannot be read, or was trained
        on another base than the first.
    """
    records = [read_record(folder, "runs") for folder in folders]
    runs: list[FinishedRun] = []
    for folder, record in zip(folders, records, strict=True):
        run = open_run(folder, record)
        frozen = run.frozen
        if runs:
            first = runs[0]
            require_one_base([first.frozen, frozen], [str(first.folder), str(folder)])
            known = {path: first.frozen.base.get(path, x) for path, x in frozen.base.items()}
            frozen = dataclasses.replace(frozen, base=known)
        experiment = dataclasses.replace(run.experiment, frozen=frozen)  # a second base goes
        runs.append(dataclasses.replace(run, frozen=frozen, experiment=experiment))
    return runs


def params_before(run: FinishedRun) -> dict[str, Array]:
    """The parameters that a run trains in full, as they were before training, by path.

    Raises:
      ValueError, FileNotFoundError: the run started from an adapter that cannot be read.
    """
    trainable = run.experiment.trainable
    if run.config.start_from:
        path, any_base = make_start(run.config.start_from)
        trainable, _ = lj.start_from(path, trainable, run.experiment.frozen, any_base=any_base)
    return trainable["params"]


def origin(run: FinishedRun) -> dict[str, str]:
    """The run, and the digests of its config and of the file of its adapter."""
    with (run.folder / ADAPTER).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "run": str(run.folder),
        "variant": run.config.variant.name,
        "config_digest": run.record.config_digest,
        "adapter_sha256": digest,
    }
