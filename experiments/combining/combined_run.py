"""A combined adapter as a run of LoRA would have trained it."""

import dataclasses
from collections.abc import Sequence

import lora_jax as lj
from configs.settings import COMBINED, RunConfig
from experiments.command_names import shown
from experiments.runs.finished_run import FinishedRun, replaced
from experiments.setup import from_config
from experiments.setup.config import parse
from experiments.setup.experiment import Experiment
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
