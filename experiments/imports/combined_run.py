"""Runs combined into one: open finished runs of one base, and make the run that they come to.

`lora_jax.adapters` computes.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jax import Array

import lora_jax as lj
from configs.settings import COMBINED, RunConfig
from experiments.command_names import shown
from experiments.runs.finished_run import ADAPTER, FinishedRun, open_run, read_record, replaced
from experiments.setup import from_config
from experiments.setup.config import parse
from experiments.setup.experiment import Experiment
from lora_jax.adapters.combination import require_one_base
from lora_jax.partition import only

FILE = "combined.json"
"""Says what the adapter was made of."""


def require_published_bases(runs: Sequence[FinishedRun]) -> None:
    """Raise a ValueError for a run whose base a config of LoRA does not make: LoftQ's."""
    for run in runs:
        if (path := replaced(run)) is not None:
            raise ValueError(
                f"{run.folder}: LoftQ has quantised another matrix in the place of '{path}', so a "
                f"run of LoRA would begin from another base: merge each run ({shown('export')} "
                "--as=merged)"
            )


def config_of(first: RunConfig, combined: lj.Combined, size: str) -> RunConfig:
    """The config of a run that would train this adapter: the first run's, with LoRA.

    Args:
      size: `smoke` if any of the runs is a smoke run.
    """
    ranks = {
        path: int(factors["a"].shape[-2])
        for path, factors in combined.trainable["adapters"].items()
    }
    rank = max(ranks.values(), default=1)
    lora = {"name": "lora", "rank": rank, "alpha": float(rank)}
    changes = {
        "experiment": COMBINED,
        "study": {"size": size},
        "start_from": None,
        "variant": lora if ranks else {"name": "head_only"},
        "targets": [
            [only(path), {"rank": each, "alpha": float(each)}] for path, each in ranks.items()
        ]
        or ["all-linear"],
        "also_train": [only(path) for path in combined.trainable["params"]],
    }
    return parse({**first.plain, **changes})


def experiment_of(first: Experiment, combined: lj.Combined, size: str) -> Experiment:
    """The first run's experiment, with the combined adapter; `size` is as for `config_of`."""
    config = config_of(first.config, combined, size)
    adapted = from_config.adapt(config, first.adapted.forward, from_config.make_targets(config))
    made = {"trainable": combined.trainable, "frozen": combined.frozen}
    return dataclasses.replace(first, config=config, adapted=adapted, gathered=None, **made)


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
        path, any_base = from_config.make_start(run.config.start_from)
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
