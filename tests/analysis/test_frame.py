"""The runs of a folder as DataFrames: what the records say, packed or not."""

import gzip
import io

import pandas as pd
import pytest
from fake_records import write

from experiments.analysis import frame
from experiments.runs import packing
from lora_jax.records import packed, run_record


@pytest.fixture
def results(tmp_path):
    for seed in range(3):
        folder = tmp_path / "runs" / str(seed)
        arg = f"task=sst2,seed={seed}"
        scores = {"accuracy": 0.5 + seed / 7}
        record = write(folder, "glue", arg, scores, losses=(1 / 3, seed / 3))
        (folder / "config.json").write_bytes(run_record.pretty(record.config))
    return tmp_path


def test_a_frame_has_what_records_and_metrics_say(results):
    runs, metrics = frame.runs(results), frame.metrics(str(results))
    assert list(runs["run"]) == [f"runs/{seed}" for seed in range(3)]
    assert list(runs["seed"]) == list(runs["config.seed"]) == [0, 1, 2]
    assert list(runs["score"]) == list(runs["metrics_last.accuracy"]) == [0.5, 0.5 + 1 / 7, 11 / 14]
    assert set(runs["config.variant.name"]) == {"lora"} and runs["sealed"].all()
    losses = metrics.dropna(subset=["loss"]).pivot(index="run", columns="step", values="loss")
    assert losses[10].tolist() == [1 / 3] * 3 and losses[20].tolist() == [0, 1 / 3, 2 / 3]


def test_packed_runs_give_the_same_frames(results):
    before = frame.runs(results), frame.metrics(results)
    packing.pack(results, sorted((results / "runs").iterdir()))
    pd.testing.assert_frame_equal(frame.runs(results), before[0])
    pd.testing.assert_frame_equal(frame.metrics(results), before[1])
    text = gzip.decompress((results / packed.METRICS).read_bytes()).decode()
    read = pd.read_json(io.StringIO(text), lines=True, precise_float=True)
    pd.testing.assert_frame_equal(read.drop(columns="crc32"), before[1])
