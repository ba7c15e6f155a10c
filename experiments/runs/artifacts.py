"""What a run leaves behind when it ends: adapter, predictions and, last, its record."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jax import Array

import lora_jax as lj
from experiments.distributed import processes
from experiments.runs import generated_texts, predictions
from experiments.runs.predictions import Predictions
from experiments.setup.experiment import Experiment
from lora_jax.files.canonical_json import config_digest, plain
from lora_jax.partition import select_paths
from lora_jax.records import run_record
from lora_jax.records.environment import environment, peak_memory_bytes
from lora_jax.training.loop import Loop, Outcome
from lora_jax.training.step import Batch, TrainState
from lora_jax.transform.summary import Summary, summary

NOT_FINITE = "loss, gradient, weights or score not finite at step {}"


class Left(NamedTuple):
    """What a run has beside its outcome when it ends."""

    ranks: dict[str, Any] | None = None
    """Those that a method has chosen; None for one that chooses none."""
    kept: Summary | None = None
    """What is trained of the adapter of those ranks."""
    samples: list[dict[str, Any]] | None = None
    """Texts of a language model, before and after training."""
    written: Mapping[str, float] = MappingProxyType({})
    """Metrics of a language model's texts."""
    signatures: Mapping[str, str] = MappingProxyType({})
    """How those were computed."""


NOTHING = Left()


def save(
    experiment: Experiment,
    state: TrainState,
    workdir: Path,
    call: Callable[[Batch], Array],
) -> Left:
    """Write the adapter; where a method has chosen ranks, also the smaller one, and a picture.

    Of several processes all call this, and one writes.

    Args:
      call: the adapted model, for the predictions that are kept.
    """
    meta = {"config": experiment.config}
    trainable, variant_state = processes.whole((state.trainable, state.variant_state))
    frozen = dataclasses.replace(
        experiment.frozen,
        constants=processes.whole(experiment.frozen.constants),
        shared=processes.whole(experiment.frozen.shared),
    )
    lj.save_adapter(workdir, trainable, frozen, meta)
    parts = (*experiment.task.extra, *experiment.task.unlabelled)
    outputs = experiment.predictions(call, *parts)
    if processes.writes():
        labels = experiment.problem.labels
        kept = {part: Predictions(each, labels(part)) for part, each in outputs.items()}
        predictions.write(workdir, kept)
    left = _written(experiment, state.trainable)
    pruned, smaller = lj.prune(trainable, frozen, variant_state)
    if smaller.spec == frozen.spec:
        return left
    lj.save_adapter(workdir / "pruned.safetensors", pruned, smaller, meta)
    ranks = lj.ranks(trainable, frozen)
    if processes.writes():
        _draw(ranks, workdir / "ranks.png")
    chosen = {path: each.tolist() for path, each in ranks.items()}
    return left._replace(ranks=chosen, kept=summary(pruned, smaller))


def _draw(ranks: Mapping[str, Any], path: Path) -> None:
    """Write the picture of ranks, where what draws is installed.

    The record has them: `experiments.plot --kind=ranks` draws the same later.
    """
    try:
        from experiments.runs.rank_map import rank_map  # matplotlib is an extra, and slow to import
    except ModuleNotFoundError:
        return
    rank_map(ranks, path)


def _written(experiment: Experiment, trainable: Any) -> Left:
    """What a language model writes, where the config asks for it."""
    if not experiment.config.get("generate"):
        return NOTHING
    values, signatures = generated_texts.scores(experiment, trainable)
    found = generated_texts.samples(experiment, trainable)
    return Left(samples=found or None, written=values, signatures=signatures)


def record(
    experiment: Experiment,
    outcome: Outcome,
    started: float,
    status: Any,
    note: str,
    left: Left = NOTHING,
) -> run_record.Record:
    """The record of a run, from what it was and what it came to."""
    config, loop = experiment.config, experiment.loop
    since = f" from step {loop.best_from} on" if loop.best_from else ""
    counted = summary(experiment.trainable, experiment.frozen)
    config = plain(config)
    best = config["train"]["select"] == "best"
    return run_record.Record(
        experiment=config["experiment"],
        config=config,
        config_digest=config_digest(config),
        **environment(),
        seed=config["seed"],
        data_digest=experiment.task.digest(),
        weights_digest=experiment.weights_digest,
        parameters_trained=counted.trained,
        parameters_total=counted.total,
        parameters_adapters=(left.kept or counted).trained - _head_size(experiment),
        metrics_best={**outcome.metrics_best, **(left.written if best else {})},
        metrics_last={**outcome.metrics_last, **({} if best else left.written)},
        rule=f"{loop.mode} validation {loop.metric} over evaluations{since}",
        metric=loop.metric,
        steps=outcome.steps,
        best_step=outcome.best_step,
        seconds=outcome.seconds,
        seconds_total=time.perf_counter() - started,
        peak_memory_bytes=peak_memory_bytes(),
        status=status,
        note=note,
        ranks=left.ranks,
        target=_target(loop, outcome),
        evaluations=outcome.evaluations,
        metrics_first=dict(outcome.metrics_first) or None,
        samples=left.samples,
        signatures=dict(left.signatures) or None,
        audit=outcome.audit,
        tokenised_per_second=experiment.examples_per_second,
    )


def _head_size(experiment: Experiment) -> int:
    """The parameters that `also_train` names: papers leave the head out of their counts."""
    params = experiment.trainable["params"]
    if not (patterns := experiment.config["also_train"]):
        return 0
    return sum(params[path].size for path in select_paths(patterns, params))


def _target(loop: Loop, outcome: Outcome) -> dict[str, Any] | None:
    if loop.target is None:
        return None
    return {
        "score": loop.target,
        "step": outcome.target_step,
        "seconds": outcome.target_seconds,
    }
