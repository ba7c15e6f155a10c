"""A run that a tracker follows: each step of its `metrics.jsonl` is written once."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from experiments.tracking.metrics_rows import Rows
from experiments.tracking.tracker import NO_IMAGES, Status, Tracker


class FollowedRun(contextlib.AbstractContextManager["FollowedRun"]):
    """Gives a tracker the rows of a file, all lines of a step together.

    A step is written when a later one begins, or with the next image or the end. What the tracker
    has from an earlier process, by its own `last`, is left out; what it lacks is made up for.
    """

    def __init__(self, tracker: Tracker, metrics: Path):
        self._tracker = tracker
        self._last = dict(tracker.last())
        self._rows = Rows(metrics)
        self._step, self._waiting = 0, dict[str, float]()

    def look(self) -> None:
        """Read new lines, and write the steps that they complete."""
        for step, scalars in self._rows.new():
            if step != self._step:
                self._flush()
            self._step = step
            self._waiting |= scalars

    def write(
        self, step: int, scalars: Mapping[str, float], images: Mapping[str, Path] = NO_IMAGES
    ) -> None:
        """Write values and images that are not in the file, after all that is in it."""
        self.look()
        self._flush()
        news = self._news(step, scalars)
        if news or images:
            self._tracker.write(step, news, images)
            self._last |= dict.fromkeys(news, step)

    def end(self, status: Status) -> None:
        self.look()
        self._flush()
        self._tracker.end(status)

    def _flush(self) -> None:
        if news := self._news(self._step, self._waiting):
            self._tracker.write(self._step, news)
            self._last |= dict.fromkeys(news, self._step)
        self._waiting = {}

    def _news(self, step: int, scalars: Mapping[str, float]) -> dict[str, float]:
        return {name: x for name, x in scalars.items() if step > self._last.get(name, -1)}

    def __exit__(self, *_: object) -> None:
        self._rows.__exit__()
