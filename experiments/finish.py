"""What a run leaves behind when it ends: adapter, predictions and, last, its record."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax import Array

import lora_jax as lj
from experiments import predictions
from experiments.build import Experiment
from experiments.plots import rank_map
from experiments.predictions import Predictions
from lora_jax import records, train
from lora_jax.partition import select_paths
from lora_jax.summary import Summary, summary

NOT_FINITE = "loss, gradient, weights or score not finite at step {}"


def save(
    experiment: Experiment,
    state: train.TrainState,
    workdir: Path,
    call: Callable[[train.Batch], Array],
) -> tuple[dict[str, Any] | None, Summary | None]:
    """Write the adapter; where a method has chosen ranks, also the smaller one, and a picture.

    Args:
      call: the adapted model, for the predictions that are kept.

    Returns:
      Those ranks, and what is trained of the smaller adapter; None where ranks are not chosen.
    """
    meta = {"config": experiment.config}
    lj.save_adapter(workdir, state.trainable, experiment.frozen, meta)
    parts = (*experiment.task.extra, *experiment.task.unlabelled)
    outputs = experiment.predictions(call, *parts)
    labels = experiment.problem.labels
    kept = {part: Predictions(each, labels(part)) for part, each in outputs.items()}
    predictions.write(workdir, kept)
    pruned, frozen = lj.prune(state.trainable, experiment.frozen, state.variant_state)
    if frozen.spec == experiment.frozen.spec:
        return None, None
    lj.save_adapter(workdir / "pruned.safetensors", pruned, frozen, meta)
    ranks = lj.ranks(state.trainable, experiment.frozen)
    rank_map(ranks, workdir / "ranks.png")
    return {path: each.tolist() for path, each in ranks.items()}, summary(pruned, frozen)


def record(
    experiment: Experiment,
    outcome: train.Outcome,
    started: float,
    status: Any,
    note: str,
    ranks: dict[str, Any] | None = None,
    kept: Summary | None = None,
) -> records.Record:
    """The record of a run, from what it was and what it came to."""
    config, loop = experiment.config, experiment.loop
    since = f" from step {loop.best_from} on" if loop.best_from else ""
    counted = summary(experiment.trainable, experiment.frozen)
    config = records.plain(config)
    return records.Record(
        experiment=config["experiment"],
        config=config,
        config_digest=records.config_digest(config),
        **records.environment(),
        seed=config["seed"],
        data_digest=experiment.task.digest(),
        weights_digest=experiment.weights_digest,
        parameters_trained=counted.trained,
        parameters_total=counted.total,
        parameters_adapters=(kept or counted).trained - _head_size(experiment),
        metrics_best=dict(outcome.metrics_best),
        metrics_last=dict(outcome.metrics_last),
        rule=f"{loop.mode} validation {loop.metric} over evaluations{since}",
        metric=loop.metric,
        steps=outcome.steps,
        best_step=outcome.best_step,
        seconds=outcome.seconds,
        seconds_total=time.perf_counter() - started,
        peak_memory_bytes=records.peak_memory_bytes(),
        status=status,
        note=note,
        ranks=ranks,
        target=_target(loop, outcome),
        evaluations=outcome.evaluations,
        metrics_first=dict(outcome.metrics_first) or None,
        tokenised_per_second=experiment.examples_per_second,
    )


def _head_size(experiment: Experiment) -> int:
    """The parameters that `also_train` names: papers leave the head out of their counts."""
    params = experiment.trainable["params"]
    if not (patterns := experiment.config["also_train"]):
        return 0
    return sum(params[path].size for path in select_paths(patterns, params))


def _target(loop: train.Loop, outcome: train.Outcome) -> dict[str, Any] | None:
    if loop.target is None:
        return None
    return {
        "score": loop.target,
        "step": outcome.target_step,
        "seconds": outcome.target_seconds,
    }
