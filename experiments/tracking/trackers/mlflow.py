"""MLflow: a database in RUN/tracking/mlflow, for a sweep or study in its own folder.

    mlflow ui --backend-store-uri sqlite:///runs/cola/tracking/mlflow/mlflow.db

MLFLOW_TRACKING_URI names another store or a server, and MLFLOW_EXPERIMENT_NAME the experiment.
"""

import importlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.tracking.tracker import DONE, NO_IMAGES, Status, TrackedRun, Tracker

_ENDED = dict.fromkeys(DONE, "FINISHED") | {"diverged": "FAILED", "failed": "FAILED"}
_IDENTITY = "lora_jax.identity"


class MLflow(Tracker):
    """A run has the tags `group` and `status`; one that goes on is found by its identity."""

    package = "mlflow"

    def __init__(self, run: TrackedRun):
        super().__init__(run)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        tracking: Any = importlib.import_module("mlflow.tracking")
        self._entities: Any = importlib.import_module("mlflow.entities")
        self._uri = os.environ.get("MLFLOW_TRACKING_URI") or _database(run.store)
        with FileLock(run.store / "opening.lock"):
            if self._uri == _database(run.store):
                _make_tables(tracking.MlflowClient, run.store)
            self._client = tracking.MlflowClient(tracking_uri=self._uri)
            self._experiment = self._find_experiment()
        found = self._client.search_runs(
            [self._experiment], f"tags.`{_IDENTITY}` = '{run.identity}'"
        )
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            self._client.set_tag(self._id, "status", "running")
        else:
            self._id = self._begin()

    def _find_experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.run.project
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return found.experiment_id
        own = self._uri == _database(self.run.store)
        files = (self.run.store.absolute() / "artifacts").as_uri() if own else None
        return self._client.create_experiment(name, artifact_location=files)

    def _begin(self) -> str:
        run = self.run
        tags = {_IDENTITY: run.identity, "status": "running"}
        tags |= {"group": run.group} if run.group else {}
        made = self._client.create_run(self._experiment, run_name=run.name, tags=tags).info.run_id
        params = [
            self._entities.Param(name, str(value)[:500]) for name, value in run.settings.items()
        ]
        for start in range(0, len(params), 100):  # the most that a request may have
            self._client.log_batch(made, params=params[start : start + 100])
        return made

    @property
    def where(self) -> str:
        if self._uri.startswith("http"):
            return f"{self._uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{self._id}"
        return self._uri

    def last(self) -> Mapping[str, int]:
        names = self._client.get_run(self._id).data.metrics
        return {
            name: max(each.step for each in self._client.get_metric_history(self._id, name))
            for name in names
        }

    def write(
        self, step: int, scalars: Mapping[str, float], images: Mapping[str, Path] = NO_IMAGES
    ) -> None:
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, x, now, step) for name, x in scalars.items()]
        self._client.log_batch(self._id, metrics=metrics)
        for path in images.values():
            self._client.log_artifact(self._id, str(path), "images")

    def end(self, status: Status) -> None:
        self._client.set_tag(self._id, "status", status)
        self._client.set_terminated(self._id, _ENDED.get(status, "KILLED"))


def _database(folder: Path, name: str = "mlflow.db") -> str:
    return f"sqlite:///{folder.absolute() / name}"


def _make_tables(client: Any, folder: Path) -> None:
    """Make the database, which takes seconds; a process killed meanwhile leaves no half of it."""
    made = folder / "mlflow.db"
    if not made.exists():
        new = made.with_suffix(".new")
        new.unlink(missing_ok=True)
        client(tracking_uri=_database(folder, new.name))
        new.replace(made)
