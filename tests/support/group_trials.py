"""Trials of a group: their configs, what kills them, and the folders that they leave, compared."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy

from configs import quickstart
from experiments.runs import predictions
from experiments.setup.config import parse
from lora_jax.records import metrics_log, run_record

QUERY = (("query/kernel", {"rank": 4}), "value/kernel")


def config(model="minilm", variant="lora", **changes):
    made = quickstart.get_config(f"variant={variant},size=smoke")
    settings = {
        "model.name": model,
        "data.train": 0,
        "data.max_length": 8,  # so that what is traced is of one length
        "data.buckets": 1,
        "train.batch_size": 8,
        "train.evaluations": 2,
        "train.checkpoint_every": 3,
        "train.log_every": 1,
    }
    made.update_from_flattened_dict(settings)
    made.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return parse(made.to_dict())


def folders(root, number):
    return [root / f"trial_{each}" for each in range(number)]


def without_time(record):
    """A record but for what no two runs have in common."""
    times = {"seconds": 0.0, "seconds_total": 0.0, "peak_memory_bytes": 0}
    times |= {"tokenised_per_second": None, "metrics_check": None}  # the metrics have times
    evaluations = [{**each, "seconds": 0.0} for each in record.evaluations]
    return dataclasses.replace(record, **times, evaluations=evaluations)


def assert_alike(here, there):
    """Folders of one trial: the same files, and equal but for rounding in what was measured."""
    names = [{path.name for path in each.iterdir()} for each in (here, there)]
    assert names[0] == names[1] - {"checkpoints"}
    assert (here / "config.json").read_bytes() == (there / "config.json").read_bytes()
    assert shapes(here / "adapter.safetensors") == shapes(there / "adapter.safetensors")
    rows = [metrics_log.read_metrics(each / "metrics.jsonl") for each in (here, there)]
    assert [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]]
    for name in ("loss", "grad_norm"):  # of the first step, before Adam amplifies rounding
        assert rows[0][0][name] == pytest.approx(rows[1][0][name], rel=1e-5)
    losses = [[row["loss"] for row in each if "loss" in row] for each in rows]
    np.testing.assert_allclose(*losses, rtol=2e-3)

    mine, other = (
        dataclasses.asdict(without_time(run_record.read(each))) for each in (here, there)
    )
    audits = mine.pop("audit"), other.pop("audit")
    for each in audits:
        assert 0 < each["error"] < each["tolerance"]
    assert audits[0]["batches"] == audits[1]["batches"] == 1
    for name in ("metrics_best", "metrics_last"):
        assert mine.pop(name) == pytest.approx(other.pop(name), abs=0.05)
    for each in (mine, other):
        for row in each["evaluations"]:
            row.pop("score")
        each.pop("best_step")
    assert mine == other

    said, expected = (predictions.read(each)["validation"] for each in (here, there))
    np.testing.assert_array_equal(said.labels, expected.labels)
    np.testing.assert_allclose(said.outputs, expected.outputs, atol=0.02)
    assert_scored(here)


def assert_scored(folder):
    """A trial's saved predictions have the scores of the state that was to be saved."""
    record, said = run_record.read(folder), predictions.read(folder)["validation"]
    assert record is not None
    best = record.config["train"]["select"] == "best"
    scores = record.metrics_best if best else record.metrics_last
    assert np.mean(said.outputs.argmax(1) == said.labels) == scores["accuracy"]


def shapes(path):
    return {name: each.shape for name, each in safetensors.numpy.load_file(path).items()}
