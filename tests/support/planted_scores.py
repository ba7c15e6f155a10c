"""Contests whose runs are nothing but scores, for tests of statistics."""

import types
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.analysis.choose_methods import Contest, Method, Setting
from experiments.analysis.labels import heading


def run(number, score, status="completed"):
    """A run as a `recorded_runs.Run`: a score in points, None for none."""
    return types.SimpleNamespace(
        number=(number, number),
        folder=Path("none"),
        completed=status == "completed",
        record=types.SimpleNamespace(status=status, metric="accuracy"),
        config=types.SimpleNamespace(train=types.SimpleNamespace(select="last")),
        score=lambda metric, choose="last": score,
        predictions=dict,
    )


def contest(
    task: str,
    scores: Mapping[str, Sequence[float] | np.ndarray],
    others: Mapping[str, Sequence[object]] | None = None,
    model: str = "minilm",
) -> Contest:
    """The contest of one task: the scores of each method by seed, and further runs of some."""
    methods = []
    for key, own in scores.items():
        runs = [run(seed, float(score)) for seed, score in enumerate(own)]
        runs += (others or {}).get(key, [])
        setting = Setting({}, tuple(runs)) if runs else None
        made = Method(key, key.upper(), (), (), setting, "held-out", tuple(runs), "held_out")
        methods.append(made)
    return Contest("planted", model, task, heading(task), "accuracy", False, tuple(methods))


def study(rng, noise, seeds, effects, shared=1.0, tasks=("cola", "mrpc", "rte")):
    """Contests with planted effects over `lora` in points, the same on each task.

    Args:
      noise: the sd of the paired differences, of each task.
      effects: by method.
      shared: the sd of what all methods of a seed have in common.
    """
    made = []
    for task, own in zip(tasks, noise, strict=True):
        common = 80 + shared * rng.normal(size=seeds)
        one = own / np.sqrt(2)
        scores = {
            key: common + effect + one * rng.normal(size=seeds) for key, effect in effects.items()
        }
        made.append(contest(task, {"lora": common + one * rng.normal(size=seeds), **scores}))
    return made
