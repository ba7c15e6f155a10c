"""The folder of a combined adapter: what a run of LoRA would have left, and what it was made of."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lora_jax as lj
from configs.settings import RunConfig
from experiments.runs import artifacts
from experiments.setup import from_config
from experiments.setup.config import parse
from experiments.setup.experiment import Experiment
from lora_jax.files.atomic import write_atomically
from lora_jax.partition import only
from lora_jax.records import run_record
from lora_jax.training.outcome import Outcome, all_finite

FILE = "combined.json"


def config_of(first: RunConfig, combined: lj.Combined) -> RunConfig:
    """The config of a run that would train this adapter: the first run's, with LoRA."""
    ranks = {
        path: int(factors["a"].shape[-2])
        for path, factors in combined.trainable["adapters"].items()
    }
    rank = max(ranks.values(), default=1)
    lora = {"name": "lora", "rank": rank, "alpha": float(rank)}
    changes = {
        "experiment": "combined",
        "study": {},
        "start_from": None,
        "variant": lora if ranks else {"name": "head_only"},
        "targets": [
            [only(path), {"rank": each, "alpha": float(each)}] for path, each in ranks.items()
        ]
        or ["all-linear"],
        "also_train": [only(path) for path in combined.trainable["params"]],
    }
    return parse({**first.plain, **changes})


def experiment_of(first: Experiment, combined: lj.Combined) -> Experiment:
    """The first run's experiment, with the combined adapter."""
    config = config_of(first.config, combined)
    adapted = from_config.adapt(config, first.adapted.forward, from_config.make_targets(config))
    made = {"trainable": combined.trainable, "frozen": combined.frozen}
    return dataclasses.replace(first, config=config, adapted=adapted, gathered=None, **made)


def write(
    folder: Path, experiment: Experiment, made_of: Mapping[str, Any], note: str
) -> run_record.Record:
    """Write the adapter, what it was made of, and a record with its scores on the run's task.

    Args:
      folder: a new, empty folder.
      made_of: the content of `combined.json`.
      note: of the record, in words.
    """
    began = time.perf_counter()
    run_record.claim(folder, experiment.config.plain)
    meta = {"config": experiment.config.plain}
    lj.save_adapter(folder, experiment.trainable, experiment.frozen, meta)
    text = json.dumps(made_of, indent=2, allow_nan=False) + "\n"
    write_atomically(folder / FILE, text.encode())
    scores = experiment.evaluate(experiment.trainable)
    outcome = Outcome(metrics_last=scores, metrics_best=scores, best_step=0)
    status = "completed" if all_finite(scores) else "diverged"
    seconds = time.perf_counter() - began
    record = artifacts.record(experiment, outcome, seconds, status, note)
    run_record.write(folder, record)
    return record
