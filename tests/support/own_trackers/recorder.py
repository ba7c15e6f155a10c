"""A tracker as a user may write one: it appends lines of JSON to a file in its folder.

OWN_TRACKER makes it misbehave: `begin` and `write` raise there, `exit` ends its thread in a write,
and `hang` waits there for ever. OWN_WHERE is an expression that says where a run is.
"""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from experiments.tracking.tracker import NO_IMAGES, Status, TrackedRun, Tracker


class OwnTracker(Tracker):
    def __init__(self, run: TrackedRun):
        super().__init__(run)
        self._path = run.folder / "rows.jsonl"
        self._misbehaves = os.environ.get("OWN_TRACKER", "")
        if self._misbehaves == "begin":
            raise RuntimeError("no room\nfor this run")
        self._append(begun=run.name, group=run.group, identity=run.identity, at=run.restored)

    @property
    def where(self) -> str:
        if "OWN_WHERE" in os.environ:
            return eval(os.environ["OWN_WHERE"])
        return f"own://{self.run.identity}"

    def write(
        self, step: int, scalars: Mapping[str, float], images: Mapping[str, Path] = NO_IMAGES
    ) -> None:
        if self._misbehaves == "write":
            raise RuntimeError("no room for this row")
        if self._misbehaves == "exit":
            raise SystemExit(3)
        if self._misbehaves == "hang":
            threading.Event().wait()
        paths = {name: str(path) for name, path in images.items()}
        self._append(step=step, scalars=dict(scalars), images=paths)

    def end(self, status: Status) -> None:
        self._append(ended=status)

    def _append(self, **values: object) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def read(folder: Path) -> list[dict]:
    """All lines of the tracker's folder of a run."""
    path = folder / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
