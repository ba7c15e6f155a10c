"""A small run that is asked to end by SIGTERM, and goes on, with trackers."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

from configs.settings import RunConfig
from experiments.runs import run
from experiments.setup import experiment
from experiments.tracking.tracking import Track, Tracking
from lora_jax.records import run_record
from lora_jax.records.metrics_log import read_metrics

FEW = {"targets": ("query/kernel",), "data__train": 24, "train__log_every": 1}
"""Three steps, of weights that take less to compile."""


def stopped_and_continued(
    smoke: Callable[..., RunConfig], folder: Path, trackers: Sequence[str], variant: str
) -> run_record.Record:
    """Train, stop at step 2, and go on.

    Args:
      smoke: as `small_model.smoke_runs` returns.
    """
    config, track = smoke(f"variant={variant}", **FEW), Track(tuple(trackers))
    true_batches = experiment.Experiment.batches

    def batches(self: Any, step: int) -> Any:
        for number, batch in enumerate(true_batches(self, step), step + 1):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with jax.numpy_dtype_promotion("standard"):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(experiment.Experiment, "batches", batches)
            run.run(config, folder, track=track, audit=False)
        return run.run(config, folder, track=track, audit=False)


def two_trials(folder: Path) -> None:
    """Track two trials of one program in wandb, Trackio and MLflow: `a` completes, `b` fails."""
    folders = {number: folder / "trials" / name for number, name in enumerate("ab")}
    track = Track(("wandb", "trackio", "mlflow"), folder, folder / "trials")
    configs = {number: {"experiment": "e"} for number in folders}
    with Tracking(track, folders, configs) as tracked:
        logs = [tracked.metrics(number, path, True) for number, path in folders.items()]
        for log in logs:
            log.truncate(0)
        for step in (1, 2):
            for number, log in enumerate(logs):
                log.write(step, {"loss": step + number / 2})
        for number, status in enumerate(("completed", "failed")):
            tracked.where(number)
            tracked.end(number, status)


def rows(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The steps and values of each metric in a run's `metrics.jsonl`."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in read_metrics(folder / "metrics.jsonl"):
        step = row.pop("step")
        for name, value in row.items():
            found.setdefault(name, []).append((step, value))
    assert {step for steps in found.values() for step, _ in steps} == {1, 2, 3}
    return found
