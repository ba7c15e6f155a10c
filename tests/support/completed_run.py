"""A folder like that of a completed run, without its training."""

import jax
import jax.numpy as jnp
from zoo.check import random_like

import lora_jax as lj
from experiments.runs import artifacts, predictions
from experiments.setup.experiment import build
from lora_jax.records import run_record
from lora_jax.training.outcome import Outcome


def completed(config, folder, metrics=None, kept=None, **left):
    """A folder like that of a completed run whose adapter is random, and its experiment.

    Args:
      metrics: its scores, last and best alike.
      kept: the predictions of its parts; None if it has saved none.
      left: fields of `artifacts.Results`.
    """
    experiment, metrics = build(config), metrics or {"accuracy": 0.5}
    trainable = jax.tree.map(jnp.add, experiment.trainable, random_like(experiment.trainable, 1))
    run_record.claim(folder, experiment.config.plain)
    lj.save_adapter(folder, trainable, experiment.frozen)
    if kept is not None:
        predictions.write(folder, kept)
    outcome = Outcome(steps=8, metrics_last=metrics, metrics_best=metrics)
    results = artifacts.Results(**left)
    record = artifacts.record(experiment, outcome, results, seconds=1.0, status="completed")
    run_record.write(folder, record)
    return folder, experiment, trainable
