"""What two runs of a command must have in common, bit by bit."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs import predictions
from lora_jax.files.canonical_json import config_digest, numbers
from lora_jax.files.safetensors_bytes import SafetensorsBytes
from lora_jax.records import run_record
from lora_jax.records.metrics_log import read_metrics

RECORDED = (
    "experiment",
    "seed",
    "data_digest",
    "weights_digest",
    "parameters_trained",
    "parameters_total",
    "parameters_adapters",
    "metrics_best",
    "metrics_last",
    "metrics_first",
    "rule",
    "metric",
    "steps",
    "best_step",
    "status",
    "ranks",
    "samples",
    "signatures",
)
"""The fields of a record that do not depend on time, memory or the machine's state."""


def of_folder(folder: Path) -> dict[str, str]:
    """Digests of all results below a folder, by their place in it.

    Of records: the fields in RECORDED, the settings and the scores of evaluations. Of metrics: all
    rows. Of adapters and predictions: every array, its type and its shape. Times do not count, nor
    the digest of a study's registration, which holds the time of its first command.

    Raises:
      ValueError: a file is damaged.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("record.json")):
        name = str(path.parent.relative_to(folder))
        for part, value in of_run(path.parent).items():
            found[f"{name}/{part}"] = digest(value)
    return found


def of_run(folder: Path) -> dict[str, Any]:
    """The results in a run's folder: its record, metrics, adapters and predictions.

    Raises:
      ValueError: a file is damaged.
    """
    sealed = run_record.read_sealed(folder)
    if sealed is None:
        return {}
    record, has_seal = sealed
    config = {**record.config, "study": {**(record.config.get("study") or {}), "registration": ""}}
    evaluations = [numbers(each) for each in record.evaluations or ()]
    return {
        "record": {
            **{name: getattr(record, name) for name in RECORDED},
            "config": config,
            "evaluations": [[each["step"], each["score"]] for each in evaluations],
        },
        "metrics": read_metrics(folder / "metrics.jsonl", has_seal, record.metrics_check),
        "predictions": {
            name: [array(each) for each in part if each is not None]
            for name, part in predictions.read(folder).items()
        },
        **{path.name: tensors(path) for path in sorted(folder.glob("*.safetensors"))},
    }


def of_export(folder: Path) -> dict[str, str]:
    """Digests of all files of an export but its card, which quotes the command."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "README.md"
    }


def tensors(path: Path) -> dict[str, Any]:
    """Digests of the tensors of a safetensors file, by name."""
    file = SafetensorsBytes(path)
    return {name: array(file.read(name)) for name in file.names()}


def array(value: Any) -> list[Any]:
    """The type, the shape and a digest of the bytes of an array."""
    value = np.ascontiguousarray(value)
    return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]


def digest(value: Any) -> str:
    """A digest of JSON values."""
    return config_digest({"value": value})[:16]


def difference(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """The first place in which two results differ; empty if they are the same."""
    for name in [*one, *other]:
        if one.get(name) != other.get(name):
            where = "differs" if name in one and name in other else "is in one of them only"
            return f"{name} {where}"
    return ""
