"""Trackio: a database in RUN/tracking/trackio, for a sweep or study in its own folder.

    TRACKIO_DIR=runs/cola/tracking/trackio trackio show

TRACKIO_DIR names another folder; TRACKIO_SPACE_ID or TRACKIO_SERVER_URL logs to a server.
"""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.tracking.tracker import DONE, NO_IMAGES, Status, TrackedRun, Tracker


class Trackio(Tracker):
    """Runs are found by name, so names end with the identity.

    Trackio has no status of a run; an alert tells it.
    """

    package = "trackio"

    def __init__(self, run: TrackedRun):
        super().__init__(run)
        os.environ.setdefault("TRACKIO_DIR", str(run.store.absolute()))
        self._trackio: Any = importlib.import_module("trackio")
        self._name = f"{run.name} {run.identity}"
        self._run = self._trackio.init(
            project=run.project,
            name=self._name,
            group=run.group or None,
            config=run.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    @property
    def where(self) -> str:
        return self._run.url or os.environ["TRACKIO_DIR"]

    def last(self) -> Mapping[str, int]:
        """As in `Tracker`; what a server has is not asked for."""
        if self._run.url:
            return {}
        storage: Any = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
        found: dict[str, int] = {}
        for row in storage.get_logs(self.run.project, self._name):
            for name in row.keys() - {"step", "timestamp"}:
                found[name] = max(row["step"], found.get(name, 0))
        return found

    def write(
        self, step: int, scalars: Mapping[str, float], images: Mapping[str, Path] = NO_IMAGES
    ) -> None:
        drawn = {name: self._trackio.Image(str(path)) for name, path in images.items()}
        self._run.log({**scalars, **drawn}, step=step)

    def end(self, status: Status) -> None:
        levels = self._trackio.AlertLevel
        level = levels.INFO if status in DONE else levels.ERROR
        self._run.alert(f"run {status}", level=level)
        self._run.finish()
