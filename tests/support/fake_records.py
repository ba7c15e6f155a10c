"""Records of runs that never were, for the tests of tables and plots."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from configs import common_tasks
from experiments.analysis.published import SIZES
from experiments.runs import predictions
from experiments.setup.config import fill
from lora_jax.data.metrics import label_metrics
from lora_jax.files import json_text
from lora_jax.files.json_text import config_digest
from lora_jax.records import run_record
from lora_jax.records.metrics_log import Metrics

GLUE = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
ENVIRONMENT = {
    "versions": {"python": "3.11.7"},
    "device": {"platform": "cpu", "kind": "cpu", "count": 1, "processor": "one"},
    "git": None,
}


def write(
    folder: Path,
    name: str,
    arg: str,
    scores: dict[str, float],
    *,
    parameters: int | None = None,
    losses: tuple[float, ...] = (),
    changes: dict[str, Any] | None = None,
    outputs: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    **fields: Any,
) -> run_record.Record:
    """The record of `configs/<name>.py:<arg>`; scores are fractions, last and best alike.

    `outputs` and `labels` are the predictions of its validation part.
    """
    config = importlib.import_module(f"configs.{name}").get_config(arg)
    config.update_from_flattened_dict(changes or {})
    plain = json_text.plain(fill(config.to_dict()))
    task = plain["data"]["name"].partition("/")[2]
    draw = plain["data"]["draw"] if plain["data"]["train"] else 0  # of all examples none are drawn
    values = {
        "experiment": name,
        "config": plain,
        "config_digest": config_digest(plain),
        **ENVIRONMENT,
        "seed": plain["seed"],
        "data_digest": f"{plain['data']['name']} {draw}",
        "weights_digest": plain["model"]["name"],
        "parameters_trained": (parameters or 0) + 770,
        "parameters_total": int(SIZES.get(plain.get("study", {}).get("model"), 22_713_986)),
        "parameters_adapters": parameters,
        "metric": common_tasks.METRICS.get(task, "accuracy"),
        "metrics_best": scores,
        "metrics_last": scores,
        "rule": "max validation accuracy over evaluations",
        "steps": 100,
        "best_step": 100,
        "seconds": 1.0,
        "seconds_total": 2.0,
        "peak_memory_bytes": 1,
        "status": "completed",
        **fields,
    }
    record = run_record.Record(**values)
    run_record.write(folder, record)
    if losses:
        with Metrics(folder) as log:
            for step, loss in enumerate(losses, 1):
                log.write(10 * step, {"loss": loss})
            log.write(10 * len(losses), scores)
    if outputs is not None:
        predictions.write(folder, {"validation": predictions.Predictions(outputs, labels)})
    return record


def planted(
    folder: Path,
    method: str,
    seed: int,
    labels: np.ndarray,
    wrong: np.ndarray,
    *,
    task: str = "sst2",
    rate: float | None = None,
    **how: Any,
) -> run_record.Record:
    """A run of `glue.py` of two classes that gets some examples wrong, (n,), and its predictions.

    `how` goes to `write`; its `changes` come on top of the learning rate.
    """
    outputs = np.eye(2)[np.where(wrong, 1 - labels, labels)]
    metric = common_tasks.METRICS.get(task, "accuracy")
    scores = label_metrics.score((metric,), outputs, labels)
    changes = {**({} if rate is None else {"optimizer.learning_rate": rate})}
    changes |= how.pop("changes", {})
    arg = f"task={task},variant={method},seed={seed}"
    return write(
        folder, "glue", arg, scores, changes=changes, outputs=outputs, labels=labels, **how
    )
