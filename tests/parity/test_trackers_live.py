"""A run in Weights & Biases, Trackio and MLflow, offline, as these libraries read it.

The run is stopped at step 2, and goes on: all steps are those of one run, each once.
"""

import json
import os
import sqlite3
import subprocess
import sys

import pytest

pytest.importorskip("wandb")
import small_model
import tracked_runs
import wandb_file
from mlflow.tracking import MlflowClient

from experiments.tracking import tracking

# The libraries run in this process, and warn of their own code.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
NAMES = ("wandb", "trackio", "mlflow")
OWN = ("_step", "_runtime", "_timestamp")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """An environment without a login, settings and a way to a network; a machine may be slow."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("WANDB", "TRACKIO", "MLFLOW"))]:
            patch.delenv(name)
        for name, value in (nowhere | {"HOME": str(tmp_path_factory.mktemp("home"))}).items():
            patch.setenv(name, value)
        for name in ("WAIT", "SHORT_WAIT"):
            patch.setattr(tracking, name, 300)
        yield


@pytest.fixture(scope="module")
def run(alone, tmp_path_factory):
    """The record and folder of a run."""
    smoke = small_model.smoke_runs(tmp_path_factory.mktemp("small"))
    folder = tmp_path_factory.mktemp("tracked") / "run"
    return tracked_runs.stopped_and_continued(smoke, folder, NAMES, "adalora"), folder


def _environment():
    kept = {name: value for name, value in os.environ.items() if name != "TRACKIO_DIR"}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}


@pytest.fixture(scope="module")
def group(alone, tmp_path_factory):
    """The folder of two trials of one program: `a` completes, and `b` fails."""
    folder = tmp_path_factory.mktemp("group") / "cola"
    # In a process of its own, as Trackio has one folder in each.
    line = "import pathlib, sys, tracked_runs as t; t.two_trials(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", line, folder], check=True, env=_environment())
    return folder


def test_the_record_names_folders_of_the_run(run):
    record, folder = run
    place = folder / "tracking"
    assert record.trackers == {
        "wandb": str(place / "wandb"),
        "trackio": str(place / "trackio"),
        "mlflow": f"sqlite:///{place}/mlflow/mlflow.db",
    }


def test_wandb(run):
    _, folder = run
    paths = sorted((folder / "tracking" / "wandb" / "wandb").glob("offline-run-*/*.wandb"))
    parts = [list(wandb_file.records(path)) for path in paths]
    assert len(parts) == 2  # one of each process
    runs = {each.run.run_id for part in parts for each in part if each.HasField("run")}
    assert len(runs) == 1
    found, images, codes, statuses = {}, [], [], []
    for part in parts:
        for each in part:
            row = wandb_file.values(each.history.item)
            for name, value in row.items():
                if name.startswith("ranks"):
                    images.append(name)
                elif name not in OWN:
                    found.setdefault(name, []).append((row["_step"], value))
            codes += [each.exit.exit_code] if each.HasField("exit") else []
            summary = wandb_file.values(each.summary.update)
            statuses += [summary["status"]] if "status" in summary else []
    assert found == tracked_runs.rows(folder)
    assert images and codes == [1, 0]
    assert list(dict.fromkeys(statuses)) == ["preempted", "completed"]
    (picture,) = (folder / "tracking" / "wandb" / "wandb").glob("offline-run-*/files/media/*/*.png")
    assert picture.read_bytes() == (folder / "ranks.png").read_bytes()


def test_trackio(run, monkeypatch):
    record, folder = run
    store = folder / "tracking" / "trackio"
    monkeypatch.setenv("TRACKIO_DIR", str(store))  # read as the library is imported
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs(record.experiment)
    assert name.startswith("run ")
    found, images = {}, []
    for row in SQLiteStorage.get_logs(record.experiment, name):
        for key in row.keys() - {"step", "timestamp"}:
            if key == "ranks":
                images.append(row[key]["file_path"])
            else:
                found.setdefault(key, []).append((row["step"], row[key]))
    assert found == tracked_runs.rows(folder)
    (image,) = images
    assert (store / "media" / image).exists()
    alerts = sorted(SQLiteStorage.get_alerts(record.experiment), key=lambda each: each["timestamp"])
    assert [each["title"] for each in alerts] == ["run preempted", "run completed"]


def test_mlflow(run):
    record, folder = run
    client = MlflowClient(tracking_uri=record.trackers["mlflow"])
    experiment = client.get_experiment_by_name(record.experiment)
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.status, found.data.tags["status"]) == ("FINISHED", "completed")
    run_id = found.info.run_id
    assert found.data.params["variant.name"] == "adalora"
    histories = {
        name: [(each.step, each.value) for each in client.get_metric_history(run_id, name)]
        for name in found.data.metrics
    }
    assert histories == tracked_runs.rows(folder)
    assert [each.path for each in client.list_artifacts(run_id, "images")] == ["images/ranks.png"]


def test_wandb_has_trials_as_runs_of_a_group(group):
    found = {}
    for name in "ab":
        (path,) = (group / "trials" / name).glob("tracking/wandb/wandb/offline-run-*/*.wandb")
        records = list(wandb_file.records(path))
        (run,) = [each.run for each in records if each.HasField("run")]
        (code,) = [each.exit.exit_code for each in records if each.HasField("exit")]
        rows = [wandb_file.values(each.history.item) for each in records]
        losses = [row["loss"] for row in rows if "loss" in row]
        found[run.display_name] = run.project, run.run_group, code, losses
    assert found == {"a": ("e", "cola", 0, [1, 2]), "b": ("e", "cola", 1, [1.5, 2.5])}


def test_trackio_has_trials_as_runs_of_a_group(group):
    with sqlite3.connect(group / "tracking" / "trackio" / "e.db") as store:
        rows = store.execute("select run_name, step, metrics from metrics order by step").fetchall()
        configs = store.execute("select run_name, config from configs").fetchall()
    losses = {}
    for name, _, metrics in rows:
        losses.setdefault(name[0], []).append(json.loads(metrics)["loss"])
    assert losses == {"a": [1, 2], "b": [1.5, 2.5]}
    assert {name[0]: json.loads(config)["_Group"] for name, config in configs} == {
        "a": "cola",
        "b": "cola",
    }


def test_mlflow_has_trials_as_runs_of_a_group(group):
    client = MlflowClient(tracking_uri=f"sqlite:///{group}/tracking/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("e")
    runs = client.search_runs([experiment.experiment_id], "tags.group = 'cola'")
    found = {each.info.run_name: (each.info.status, each.data.metrics["loss"]) for each in runs}
    assert found == {"a": ("FINISHED", 2), "b": ("FAILED", 2.5)}
