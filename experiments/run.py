"""One run in one folder: config, metrics, checkpoints, the adapter and, last, the record."""

import time
from pathlib import Path
from typing import Any

import lora_jax as lj
from experiments import predictions
from experiments.build import Experiment, build
from experiments.plots import rank_map
from experiments.progress import bar
from lora_jax import records, train
from lora_jax.checkpoint import Checkpoints
from lora_jax.metrics_log import Metrics
from lora_jax.partition import select_paths
from lora_jax.summary import Summary, summary


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
    outcome, status, ranks, kept = train.Outcome(), "completed", None, None
    try:
        state, note = _fit(experiment, workdir, label, outcome)
        if outcome.diverged:
            status = "diverged"
        else:
            ranks, kept = _save(experiment, state, workdir)
    except Exception as error:
        note = f"{type(error).__name__}: {error}".splitlines()[0]
        records.write(workdir, _record(experiment, outcome, started, "failed", note))
        raise
    record = _record(experiment, outcome, started, status, note, ranks, kept)
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


def _save(
    experiment: Experiment, state: train.TrainState, workdir: Path
) -> tuple[dict[str, Any] | None, Summary | None]:
    """Write the adapter; where a method has chosen ranks, also the smaller one, and a picture.

    Returns:
      Those ranks, and what is trained of the smaller adapter; None where ranks are not chosen.
    """
    meta = {"config": experiment.config}
    lj.save_adapter(workdir, state.trainable, experiment.frozen, meta)
    call = experiment.adapted_call(state.trainable)
    parts = (*experiment.task.extra, *experiment.task.unlabelled)
    outputs = experiment.predictions(call, *parts)
    predictions.write(workdir, predictions.of_task(experiment.task, outputs))
    pruned, frozen = lj.prune(state.trainable, experiment.frozen, state.variant_state)
    if frozen.spec == experiment.frozen.spec:
        return None, None
    lj.save_adapter(workdir / "pruned.safetensors", pruned, frozen, meta)
    ranks = lj.ranks(state.trainable, experiment.frozen)
    rank_map(ranks, workdir / "ranks.png")
    return {path: each.tolist() for path, each in ranks.items()}, summary(pruned, frozen)


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
            return state, f"loss, gradient, weights or score not finite at step {outcome.steps}"
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


def _record(
    experiment: Experiment,
    outcome: train.Outcome,
    started: float,
    status: Any,
    note: str,
    ranks: dict[str, Any] | None = None,
    kept: Summary | None = None,
) -> records.Record:
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
