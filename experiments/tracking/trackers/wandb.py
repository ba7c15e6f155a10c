"""Weights & Biases, offline: files in RUN/tracking/wandb, which `wandb sync` uploads.

WANDB_MODE=online logs to the server, where you are logged in. WANDB_PROJECT, WANDB_ENTITY,
WANDB_RUN_GROUP and WANDB_DIR act as usual.
"""

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.tracking.tracker import DONE, NO_IMAGES, Status, TrackedRun, Tracker


class WeightsAndBiases(Tracker):
    """A run that goes on keeps its id; offline, each of its processes makes a folder.

    The library does not say what an offline run has, so `last.json` notes each step before it is
    logged.
    """

    package = "wandb"

    def __init__(self, run: TrackedRun):
        super().__init__(run)
        given = {
            "WANDB_MODE": "offline",
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",  # to the library's authors
            "WANDB_CACHE_DIR": str(run.store.absolute() / "cache"),
            "WANDB_DATA_DIR": str(run.store.absolute() / "data"),
        }
        for name, value in given.items():
            os.environ.setdefault(name, value)
        self._wandb: Any = importlib.import_module("wandb")
        self._run = self._wandb.init(
            id=run.identity,
            resume="allow",
            reinit="create_new",  # several runs at a time
            name=run.name,
            project=None if "WANDB_PROJECT" in os.environ else run.project,
            group=None if "WANDB_RUN_GROUP" in os.environ else run.group or None,
            dir=None if "WANDB_DIR" in os.environ else str(run.folder),
            config=run.config,
            settings=self._wandb.Settings(
                console="off", save_code=False, disable_git=True, x_disable_stats=True
            ),
        )
        self._noted = run.folder / "last.json"

    @property
    def where(self) -> str:
        offline = self._run.settings.mode == "offline"
        return str(self.run.folder) if offline else self._run.url or str(self.run.folder)

    def last(self) -> Mapping[str, int]:
        return json.loads(self._noted.read_text()) if self._noted.exists() else {}

    def write(
        self, step: int, scalars: Mapping[str, float], images: Mapping[str, Path] = NO_IMAGES
    ) -> None:
        new = self._noted.with_suffix(".new")
        new.write_text(json.dumps({**self.last(), **dict.fromkeys(scalars, step)}))
        new.replace(self._noted)
        drawn = {name: self._wandb.Image(str(path)) for name, path in images.items()}
        self._run.log({**scalars, **drawn}, step=step)

    def end(self, status: Status) -> None:
        self._run.summary["status"] = status
        if status == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status in DONE else 1)
