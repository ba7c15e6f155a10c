"""One run in one folder: config, metrics, checkpoints, the adapter and, last, the record."""

import time
from pathlib import Path
from typing import Any

import numpy as np

import lora_jax as lj
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
    try:
        state, outcome = _fit(experiment, workdir, label)
    except Exception as error:
        failed = train.Outcome()
        note = f"{type(error).__name__}: {error}".splitlines()[0]
        records.write(workdir, _record(experiment, failed, started, "failed", note))
        raise
    if outcome.diverged:
        note = f"the loss or its gradient is not finite at step {outcome.steps}"
        record = _record(experiment, outcome, started, "diverged", note)
    else:
        ranks, kept = _save(experiment, state, workdir)
        record = _record(experiment, outcome, started, "completed", ranks=ranks, kept=kept)
    records.write(workdir, record)
    return record


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
    np.savez_compressed(workdir / "predictions.npz", **experiment.predictions(call, *parts))
    pruned, frozen = lj.prune(state.trainable, experiment.frozen, state.variant_state)
    if frozen.spec == experiment.frozen.spec:
        return None, None
    lj.save_adapter(workdir / "pruned.safetensors", pruned, frozen, meta)
    ranks = lj.ranks(state.trainable, experiment.frozen)
    rank_map(ranks, workdir / "ranks.png")
    return {path: each.tolist() for path, each in ranks.items()}, summary(pruned, frozen)


def _fit(
    experiment: Experiment, workdir: Path, label: str
) -> tuple[train.TrainState, train.Outcome]:
    loop = experiment.loop
    best = (loop.metric, loop.mode)
    with (
        Checkpoints(workdir / "checkpoints", best=best) as checkpoints,
        Metrics(workdir) as metrics,
        bar(label, loop.steps) as progress,
    ):
        state, outcome = train.fit(
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
        )
        if experiment.config["train"]["select"] == "best" and outcome.best_step is not None:
            checkpoints.wait()
            restored = checkpoints.restore(state, outcome.best_step)
            state = state if restored is None else restored[0]
    return state, outcome


def _record(
    experiment: Experiment,
    outcome: train.Outcome,
    started: float,
    status: Any,
    note: str = "",
    ranks: dict[str, Any] | None = None,
    kept: Summary | None = None,
) -> records.Record:
    config, loop = experiment.config, experiment.loop
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
        rule=f"{loop.mode} validation {loop.metric} over evaluations",
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
