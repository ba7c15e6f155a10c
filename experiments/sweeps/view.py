"""Show the progress of a sweep's trials from their files: a line an event, and a live table."""

import contextlib
import dataclasses
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from experiments.command_names import shown
from experiments.sweeps.folder import SweepFolder, TrialState
from experiments.sweeps.trials import Trial
from lora_jax.records.metrics_log import read_metrics
from lora_jax.training.loop_settings import Loop

_EVERY = 0.5  # seconds between looks at the files


@dataclasses.dataclass
class Row:
    """A trial, and its state when its files were last read."""

    trial: Trial
    loop: Loop
    state: TrialState = dataclasses.field(default_factory=lambda: TrialState("waiting"))
    step: int = 0
    loss: float | None = None
    score: float | None = None
    _read: tuple[int, int] | None = None

    def look(self, folder: SweepFolder) -> bool:
        """Read the trial's files if they are new, and return whether its status has changed."""
        before = self.state.status
        if before != "completed":
            self.state = folder.state(self.trial)
        path = folder.run(self.trial.name) / "metrics.jsonl"
        with contextlib.suppress(OSError, ValueError):  # a file is just being replaced
            stat = path.stat()
            if self._read != (changed := (stat.st_mtime_ns, stat.st_size)):
                self._read = changed
                for row in read_metrics(path):
                    self.step = row["step"]
                    self.loss = row.get("loss", self.loss)
                    self.score = row.get(self.loop.metric, self.score)
        return before != self.state.status


class View:
    """The progress display of running trials; `update` is cheap to call often."""

    def __init__(
        self,
        trials: Sequence[Trial],
        loops: Sequence[Loop],
        folder: SweepFolder,
        console: Console,
    ):
        self.rows = [Row(*each) for each in zip(trials, loops, strict=True)]
        self._folder, self._console = folder, console
        self._live: Live | None = None
        self._seen = -_EVERY
        for row in self.rows:
            row.look(folder)
            if row.state.status == "lost":
                self._say(row)

    @contextlib.contextmanager
    def shown(self) -> Iterator["View"]:
        """Show a table of what trains in place on a terminal, below the lines of `update`."""
        if not self._console.is_terminal:
            yield self
            return
        with Live(console=self._console, auto_refresh=False) as self._live:
            yield self

    def update(self, now: bool = False) -> None:
        """Read the trials' files, at most twice a second unless `now`, and show what is new."""
        if not now and time.monotonic() - self._seen < _EVERY:
            return
        self._seen = time.monotonic()
        for row in self.rows:
            if row.look(self._folder):
                self._say(row)
        if self._live is not None:
            self._live.update(self.table(), refresh=True)

    def _say(self, row: Row) -> None:
        line = f"{row.trial.name}: {row.state.status}"
        if row.state.status == "completed" and row.score is not None:
            line += f", {row.loop.metric} {row.score:.4f}"
        line += f", {row.state.note}" if row.state.note else ""
        count = sum(each.state.ended for each in self.rows)
        line += f" ({count} of {len(self.rows)})" if row.state.ended else ""
        self._console.print(escape(line), soft_wrap=True, highlight=False)

    def table(self) -> Table:
        """A table of the trials that are training."""
        caption = counted(self.rows)
        table = Table(caption=caption, box=None, caption_justify="left")
        table.add_column("trial")  # the only column that shrinks
        for heading in ("step", "loss", "metric"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows:
            if row.state.status == "running":
                table.add_row(
                    Text(row.trial.name, overflow="ellipsis", no_wrap=True),
                    f"{row.step}/{row.loop.steps}",
                    "" if row.loss is None else f"{row.loss:.3f}",
                    "" if row.score is None else f"{row.loop.metric} {row.score:.4f}",
                )
        return table


def counted(rows: Sequence[Row]) -> str:
    """The number of trials by status."""
    counts = Counter(row.state.status for row in rows)
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def summary(rows: Sequence[Row], folder: SweepFolder) -> list[str]:
    """What trials came to: the number by status, those that did not complete, and what is next."""
    lines = [f"{len(rows)} trials: {counted(rows)}"]
    for row in rows:
        if row.state.status not in ("completed", "waiting"):
            note = f", {row.state.note}" if row.state.note else ""
            lines.append(f"{row.trial.name}: {row.state.status}{note}")
    lines.append(f"records: {folder.path / 'trials'}")
    if any(row.state.status == "completed" for row in rows):
        lines.append(f"report: {_report([row.trial for row in rows], folder)}")
    return lines


def _report(trials: Sequence[Trial], folder: SweepFolder) -> str:
    """The command that compares the trials of a sweep."""
    sizes = {(each.plain.get("study") or {}).get("size", "full") for each in trials}
    size = [f"--size={sizes.pop()}"] if sizes == {"smoke"} else []
    return f"{shown('report')} {shlex.join([f'--results={folder.path}', *size])}"
