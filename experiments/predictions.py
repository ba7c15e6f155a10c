"""What the saved adapter of a run says of every example, beside the labels: `predictions.npz`.

The outputs of each part are under its name (`validation`, `test`, ...) and its labels under
`<name>/label`, in the order of the data, so that any two runs can be compared pair by pair later.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lora_jax.data import Task

NAME = "predictions.npz"


class Predictions(NamedTuple):
    """Of one part: outputs (n, classes or 1), and labels (n,) where it has them."""

    outputs: np.ndarray
    labels: np.ndarray | None


def of_task(task: Task, outputs: Mapping[str, np.ndarray]) -> dict[str, Predictions]:
    """The outputs of each part with the task's labels."""
    parts = {"validation": task.validation, **task.extra, **task.unlabelled}
    return {name: Predictions(each, parts[name].labels) for name, each in outputs.items()}


def write(folder: Path, predictions: Mapping[str, Predictions]) -> None:
    arrays: dict[str, Any] = {}
    for name, each in predictions.items():
        arrays[name] = each.outputs
        if each.labels is not None:
            arrays[f"{name}/label"] = each.labels
    np.savez_compressed(folder / NAME, **arrays)


def read(folder: Path) -> dict[str, Predictions]:
    """All parts that a run's folder has; none where it has no such file."""
    if not (folder / NAME).exists():
        return {}
    with np.load(folder / NAME) as arrays:
        labels = {name: arrays[name] for name in arrays if name.endswith("/label")}
        return {
            name: Predictions(arrays[name], labels.get(f"{name}/label"))
            for name in arrays
            if name not in labels
        }
