"""Write the results of a run when it ends: the adapter, the predictions and, last, the record."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jax import Array

import lora_jax as lj
from configs.settings import TextConfig
from experiments.runs import generated_texts, predictions
from experiments.setup import processes
from experiments.setup.experiment import Experiment
from lora_jax import data
from lora_jax.files.json_text import config_digest, plain
from lora_jax.partition import select_paths
from lora_jax.records import run_record
from lora_jax.records.environment import environment, peak_memory_bytes
from lora_jax.training.outcome import Outcome
from lora_jax.training.step import Batch, TrainState
from lora_jax.transform.summary import Summary, summary

NOT_FINITE = "loss, gradient, weights or score not finite at step {}"


class Results(NamedTuple):
    """Results at the end of a run, other than its `Outcome`."""

    ranks: dict[str, Any] | None = None
    """The ranks that a method has chosen; None if it chooses none."""
    kept: Summary | None = None
    """The parameter counts of the adapter with those ranks."""
    samples: list[dict[str, Any]] | None = None
    """Texts that a language model generated before and after training."""
    written: Mapping[str, float] = MappingProxyType({})
    """Metrics of a language model's generated texts."""
    signatures: Mapping[str, str] = MappingProxyType({})
    """How those metrics were computed."""
    images: Mapping[str, Path] = MappingProxyType({})
    """The pictures that were drawn, PNG files by name."""


NOTHING = Results()


def save(
    experiment: Experiment,
    state: TrainState,
    workdir: Path,
    call: Callable[[Batch], Array],
    outputs: Mapping[str, np.ndarray],
) -> Results:
    """Write the adapter and the predictions of a run, and return its other results.

    If a method has chosen ranks, also write the pruned adapter, and a picture of the ranks. With
    several processes, all call this, and one writes.

    Args:
      call: the adapted model, for the predictions.
      outputs: those of `call` that are known already, by part.
    """
    meta = {"config": experiment.config.plain}
    trainable, variant_state = processes.whole((state.trainable, state.variant_state))
    frozen = dataclasses.replace(
        experiment.frozen,
        constants=processes.whole(experiment.frozen.constants),
        shared=processes.whole(experiment.frozen.shared),
    )
    lj.save_adapter(workdir, trainable, frozen, meta)
    save_predictions(experiment, workdir, call, outputs)
    results = _written(experiment, state.trainable)
    pruned, smaller = lj.prune(trainable, frozen, variant_state)
    drops = smaller.spec != frozen.spec
    if not drops and not any(each and each.allots for _, each in experiment.adapted.rules):
        return results
    if drops:
        lj.save_adapter(workdir / "pruned.safetensors", pruned, smaller, meta)
    ranks = lj.ranks(trainable, frozen)
    picture = workdir / "ranks.png"
    drawn = {"ranks": picture} if processes.writes() and _draw(ranks, picture) else {}
    chosen = {path: each.tolist() for path, each in ranks.items()}
    return results._replace(ranks=chosen, kept=summary(pruned, smaller), images=drawn)


def save_predictions(
    experiment: Experiment,
    workdir: Path,
    call: Callable[[Batch], Array],
    known: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
    """Write the outputs of the adapted model for every part but the training one; return them."""
    parts, labels = (*experiment.scored, *experiment.texts.task.unlabelled), experiment.texts.labels
    others = experiment.predictions(call, *(part for part in parts if part not in known))
    outputs = {**known, **others}
    if processes.writes():
        kept = {part: predictions.Predictions(each, labels(part)) for part, each in outputs.items()}
        predictions.write(workdir, kept)
    return outputs


def _draw(ranks: Mapping[str, Any], path: Path) -> bool:
    """Draw the ranks, if matplotlib is installed; return whether it is.

    The record also has them, so `experiments.plot --kind=ranks` can draw the picture later.
    """
    try:
        from experiments.runs.rank_map import rank_map  # matplotlib is optional, and slow to import
    except ModuleNotFoundError:
        return False
    rank_map(ranks, path)
    return True


def _written(experiment: Experiment, trainable: Any) -> Results:
    """Generate and score texts of a language model, if the config asks for them."""
    if not isinstance(experiment.config, TextConfig):
        return NOTHING
    values, signatures = generated_texts.scores(experiment, trainable)
    found = generated_texts.samples(experiment, trainable)
    return Results(samples=found or None, written=values, signatures=signatures)


def record(
    experiment: Experiment,
    outcome: Outcome,
    results: Results = NOTHING,
    *,
    seconds: float,
    status: run_record.Status,
    note: str = "",
    check: str | None = None,
    rungs: list[dict[str, Any]] | None = None,
    trackers: dict[str, str] | None = None,
) -> run_record.Record:
    """Make the record of a run from its experiment and its results.

    Args:
      seconds: how long the run took in all.
      check: that of the last line of the metrics.
      rungs: those that a trial of successive halving reached.
      trackers: where experiment trackers have the run.
    """
    config, loop, task = experiment.config, experiment.loop, experiment.texts.task
    since = f" from step {loop.best_from} on" if loop.best_from else ""
    counted = summary(experiment.trainable, experiment.frozen)
    settings = plain(config.plain)
    best = config.train.select == "best"
    target = {
        "score": loop.target,
        "step": outcome.target_step,
        "seconds": outcome.target_seconds,
    }
    return run_record.Record(
        experiment=config.experiment,
        config=settings,
        config_digest=config_digest(settings),
        **environment(),
        seed=config.seed,
        data_digest=task.digest(),
        weights_digest=experiment.weights_digest,
        reading_digest=experiment.reading_digest or None,
        metrics_check=check,
        parameters_trained=counted.trained,
        parameters_total=counted.total,
        parameters_adapters=(results.kept or counted).trained - _head_size(experiment),
        metrics_best={**outcome.metrics_best, **(results.written if best else {})},
        metrics_last={**outcome.metrics_last, **({} if best else results.written)},
        rule=f"{loop.mode} validation {loop.metric} over evaluations{since}",
        metric=loop.metric,
        steps=outcome.steps,
        best_step=outcome.best_step,
        seconds=outcome.seconds,
        seconds_total=seconds,
        peak_memory_bytes=peak_memory_bytes(),
        status=status,
        note=note,
        ranks=results.ranks,
        target=None if loop.target is None else target,
        evaluations=outcome.evaluations,
        metrics_first=dict(outcome.metrics_first) or None,
        samples=results.samples,
        signatures=dict(results.signatures) or None,
        audit=outcome.audit,
        gathered=experiment.gathered and dict(experiment.gathered.said),
        tokenised_per_second=experiment.texts.examples_per_second,
        rungs=rungs or None,
        trackers=trackers,
        label_names=None if isinstance(task, data.TextTask) else list(task.label_names or ()),
    )


def _head_size(experiment: Experiment) -> int:
    """The number of parameters that `also_train` names, as papers do not count the head."""
    params = experiment.trainable["params"]
    if not (patterns := experiment.config.also_train):
        return 0
    return sum(params[path].size for path in select_paths(patterns, params))
