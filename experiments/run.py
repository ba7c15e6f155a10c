"""One run in one folder: config, metrics, checkpoints, the adapter and, last, the record."""

import time
from pathlib import Path
from typing import Any

from experiments import finish
from experiments.build import Experiment, build
from experiments.progress import bar
from lora_jax import records, train
from lora_jax.checkpoint import Checkpoints
from lora_jax.metrics_log import Metrics


def run(config: dict[str, Any], workdir: Path, label: str = "train") -> records.Record:
    """Train what a config describes, or go on where an earlier process stopped.

    A folder with the record of this very config, completed, is left as it is, and its record is
    returned.

    Raises:
      ValueError, FileNotFoundError: a config that cannot work, or a folder that holds another run;
        nothing has been trained or overwritten then.
    """
    started = time.perf_counter()
    if (workdir / "config.json").exists():
        records.claim(workdir, config)
        if (record := records.read(workdir)) is not None and record.status == "completed":
            return record
    experiment = build(config)
    records.claim(workdir, config)
    outcome, status, left = train.Outcome(), "completed", finish.NOTHING
    try:
        state, note = _fit(experiment, workdir, label, outcome)
        if outcome.diverged:
            status = "diverged"
        else:
            call = experiment.adapted_call(state.trainable)
            left = finish.save(experiment, state, workdir, call)
    except Exception as error:
        note = f"{type(error).__name__}: {error}".splitlines()[0]
        records.write(workdir, finish.record(experiment, outcome, started, "failed", note))
        raise
    record = finish.record(experiment, outcome, started, status, note, left)
    records.write(workdir, record)
    return record


def summarise(record: records.Record) -> list[str]:
    """What a run came to, with the scores of the adapter that it saved."""
    lines = [f"{record.parameters_trained:,} of {record.parameters_total:,} parameters trained"]
    if record.tokenised_per_second is not None:
        lines.append(f"texts tokenised at {record.tokenised_per_second:,.0f} examples/s")
    if record.note:
        lines.insert(0, record.note)
    ended = f"{record.status} after {record.steps} steps"
    if record.status != "completed":
        return [ended, *lines]
    scores, saved = record.metrics_last, ""
    if record.config["train"]["select"] == "best":
        scores, saved = record.metrics_best, f", saved as of step {record.best_step}, the best"
    named = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
    return [f"{ended}{saved}: {named}", *lines]


def _fit(
    experiment: Experiment, workdir: Path, label: str, outcome: train.Outcome
) -> tuple[train.TrainState, str]:
    """The state to save, and what a reader of the record should know of it; fills in `outcome`."""
    loop = experiment.loop
    with (
        Checkpoints(workdir / "checkpoints", best=(loop.metric, loop.mode)) as checkpoints,
        Metrics(workdir) as metrics,
        bar(label, loop.steps) as progress,
    ):
        state, _ = train.fit(
            experiment.start(),
            experiment.frozen,
            loop=loop,
            step=experiment.make_step(),
            batches=experiment.batches,
            evaluate=experiment.evaluate,
            checkpoints=checkpoints,
            metrics=metrics,
            identity={
                "weights": experiment.weights_digest,
                "data": experiment.task.digest(),
            },
            progress=progress,
            outcome=outcome,
        )
        if outcome.diverged:
            return state, finish.NOT_FINITE.format(outcome.steps)
        if experiment.config["train"]["select"] == "best":
            return best(checkpoints, state, outcome)
    return state, ""


def best(
    checkpoints: Checkpoints, state: train.TrainState, outcome: train.Outcome
) -> tuple[train.TrainState, str]:
    """The state of the best evaluation whose checkpoint is good; `outcome` names that one."""
    wanted = outcome.best_step
    if wanted == outcome.steps or (restored := checkpoints.restore_best(state)) is None:
        return state, ""
    state, meta, step = restored
    if step == wanted:
        return state, ""
    outcome.best_step, outcome.metrics_best = step, meta["outcome"]["metrics_last"]
    return state, f"the best checkpoint, of step {wanted}, is damaged: of step {step} instead"
