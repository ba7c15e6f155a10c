"""Runs with trackers: TensorBoard reads what they have written, and trials are runs of a group."""

from pathlib import Path

import jax
import numpy as np
import pytest
import small_model
import tracked_runs
from own_trackers import recorder
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

from experiments.runs import run
from experiments.runs.run_options import RunOptions
from experiments.setup import experiment
from experiments.sweeps import jobs
from experiments.sweeps.folder import SweepFolder
from experiments.tracking.tracking import Track, Tracking
from lora_jax.records import run_record
from lora_jax.records.metrics_log import read_metrics

OWN = "own_trackers.recorder"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return small_model.smoke_runs(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def stopped(smoke, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    return tracked_runs.stopped_and_continued(smoke, folder, ["tensorboard", OWN], "lora"), folder


def read(folder):
    found = EventAccumulator(str(folder / "tracking" / "tensorboard"), {"scalars": 0, "images": 0})
    found.Reload()
    return found


def test_tensorboard_reads_what_metrics_jsonl_has(stopped):
    record, folder = stopped
    assert record.status == "completed"
    found, expected = read(folder), tracked_runs.rows(folder)
    assert set(found.Tags()["scalars"]) == expected.keys()
    for name, rows in expected.items():
        events = found.Scalars(name)
        assert [each.step for each in events] == [step for step, _ in rows], name
        np.testing.assert_array_equal(
            np.float32([each.value for each in events]), np.float32([value for _, value in rows])
        )


def test_tensorboard_forgets_the_steps_that_are_trained_again_and_keeps_pictures(tmp_path):
    """Killed after step 4, with a checkpoint of step 2: steps 3 and 4 have the newer values."""
    drawn = tmp_path / "ranks.png"
    Image.new("RGB", (4, 3)).save(drawn)
    for restored, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        with Tracking(Track(("tensorboard",)), {0: tmp_path}, {0: {"experiment": "p"}}) as tracked:
            with tracked.metrics(0, tmp_path, True) as log:
                log.truncate(restored)
                for step in steps:
                    log.write(step, {"loss": step + restored / 10})
            tracked.write(0, 5, {}, {"ranks": drawn} if restored else {})
    (image,) = read(tmp_path).Images("ranks")
    assert (image.step, image.width, image.height) == (5, 4, 3)
    assert image.encoded_image_string == drawn.read_bytes()
    found = [(each.step, each.value) for each in read(tmp_path).Scalars("loss")]
    expected = [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert [step for step, _ in found] == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(np.float32(found), np.float32(expected))


def test_tensorboard_has_the_settings_and_the_status(stopped):
    record, folder = stopped
    found = read(folder)
    last = found.Tensors("status")[-1]
    assert last.tensor_proto.string_val == [b"completed"]
    plugin = found.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    settings = metadata.parse_session_start_info_plugin_data(plugin).hparams
    assert settings["variant.name"].string_value == "lora"
    assert (
        settings["optimizer.learning_rate"].number_value
        == (record.config["optimizer"]["learning_rate"])
    )
    plugin = found.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    ended = metadata.parse_session_end_info_plugin_data(plugin)
    assert ended.status == api_pb2.STATUS_SUCCESS


def test_the_record_says_where_the_trackers_have_the_run(stopped):
    record, folder = stopped
    rows = recorder.read(folder / "tracking" / OWN)
    assert record.trackers == {
        "tensorboard": str(folder / "tracking" / "tensorboard"),
        OWN: f"own://{rows[0]['identity']}",
    }
    assert [row["ended"] for row in rows if "ended" in row] == ["preempted", "completed"]
    assert [row["at"] for row in rows if "begun" in row] == [0, 2]
    config = run_record.claim(folder, record.config)
    assert config and "track" not in str(record.config)  # neither config nor digest knows of it


def test_trials_of_one_program_are_runs_of_a_group(smoke, tmp_path):
    """One diverges; the other completes."""
    folder = SweepFolder(tmp_path / "cola")
    names = ["rate=1e-3", "rate=1e20"]
    configs = [
        smoke(**tracked_runs.FEW, optimizer__learning_rate=float(name[5:])) for name in names
    ]
    folders = [folder.run(name) for name in names]
    with jax.numpy_dtype_promotion("standard"):
        how = RunOptions("each", audit=False, track=jobs.tracked(folder, (OWN,)))
        ended = jobs.train(configs, folders, names, how)
    assert isinstance(ended[0], run_record.Record)
    identities = set()
    for name, place, status in zip(names, folders, ("completed", "diverged"), strict=True):
        begun, *rows, end = recorder.read(place / "tracking" / OWN)
        assert (begun["begun"], begun["group"]) == (name, "cola")
        assert end == {"ended": status}
        identities.add(begun["identity"])
        given = {row["step"] for row in read_metrics(place / "metrics.jsonl")}
        assert [row["step"] for row in rows] == sorted(given)
    assert len(identities) == 2


def test_a_failed_run_ends_as_failed(smoke, tmp_path, monkeypatch):
    def broken(self, step):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(experiment.Experiment, "batches", broken)
    with pytest.raises(RuntimeError), jax.numpy_dtype_promotion("standard"):
        run.run(smoke(**tracked_runs.FEW), tmp_path, track=Track((OWN,)), audit=False)
    _, end = recorder.read(tmp_path / "tracking" / OWN)
    assert end == {"ended": "failed"}
    record = run_record.read(tmp_path)
    assert record is not None and record.trackers is not None


def test_workers_get_the_trackers_of_their_sweep():
    how = RunOptions(track=jobs.tracked(SweepFolder(Path("runs/cola")), ("wandb", "mlflow")))
    line = jobs.command(SweepFolder(Path("runs/cola")), [], how)
    assert line[-1] == "--track=wandb,mlflow"
    assert how.track == Track(("wandb", "mlflow"), Path("runs/cola"), Path("runs/cola/trials"))
