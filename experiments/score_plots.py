"""Pictures of many runs: score against parameters, training curves, learning rates."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import collect
from experiments.cells import heading, natural
from experiments.collect import Run, Summary, scale, summarise
from experiments.plots import rank_map
from experiments.published import MODELS
from lora_jax.metrics_log import read_metrics
from lora_jax.partition import nearest

MARKERS = "osD^vP*Xp<>h"
COLOURS = [f"C{index}" for index in range(10)]


@dataclasses.dataclass(frozen=True)
class Panel:
    """What one pair of axes shows: runs of one model and task, all scored on the same examples."""

    title: str
    metric: str
    runs: tuple[Run, ...]

    def label(self) -> str:
        return self.metric.replace("_", " ").capitalize() + (
            " (%)" if scale(self.metric) != 1 else ""
        )

    def rows(self, name: Callable[[Run], str]) -> dict[str, list[Run]]:
        """The completed runs by name, names in natural order."""
        done = [run for run in self.runs if run.completed]
        return {
            key: [run for run in done if name(run) == key]
            for key in natural(name(run) for run in done)
        }


def panels(runs: Sequence[Run]) -> list[Panel]:
    """The runs by table, model, task and what they were scored on.

    Raises:
      ValueError: no run has completed.
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        model, _, column = run.place
        section = run.record.config["data"]
        held = section["validation"] > 0 and section["source"] in ("tfds", "tsv")
        groups.setdefault((run.study["table"], model, column, "held-out" * held), []).append(run)
    made = []
    for (_, model, column, held), own in groups.items():
        metrics = {run.record.metric for run in own if run.completed}
        if metrics:
            title = f"{MODELS.get(model, model)}, {heading(column)}"
            title += f", {held} training examples" if held else ""
            made.append(Panel(title, natural(metrics)[0], tuple(own)))
    if not made:
        raise ValueError("no run has completed: nothing to draw")
    return made


def parameters(runs: Sequence[Run], spread: str = "sd") -> Figure:
    """Mean scores ± spread against trained parameters, heads not counted.

    Methods without adapters (a trained head alone) are a dashed line.
    """

    def draw(axes: Axes, panel: Panel) -> None:
        for (row, own), (marker, colour) in zip(
            panel.rows(lambda run: run.place[1]).items(), _styles(), strict=False
        ):
            found = _scores(own, panel.metric, spread)
            count = max(run.record.parameters_adapters or 0 for run in own)
            if found is None:
                continue
            label = row.replace("_", " ")
            if count == 0:
                axes.axhline(found.centre, color=colour, linestyle="--", label=label)
            else:
                axes.errorbar(
                    [count],
                    [found.centre],
                    yerr=found.spread,
                    fmt=marker,
                    color=colour,
                    capsize=3,
                    label=label,
                )
        axes.set_xscale("log")
        axes.set_xlabel("trained parameters, without the head")
        axes.set_ylabel(panel.label())

    return _figure(panels(runs), [draw])


def training(runs: Sequence[Run]) -> Figure:
    """Losses, and of scores below, by step: means of a row's runs, and their range.

    Steps are those that all runs of a row reported.
    """

    def loss(axes: Axes, panel: Panel) -> None:
        _curves(axes, panel, "loss", 1.0)
        axes.set_ylabel("Training loss")

    def score(axes: Axes, panel: Panel) -> None:
        _curves(axes, panel, panel.metric, scale(panel.metric))
        axes.set_ylabel(panel.label())

    return _figure(panels(runs), [loss, score])


def _curves(axes: Axes, panel: Panel, name: str, times: float) -> None:
    rows = panel.rows(lambda run: run.place[1])
    for (row, own), (marker, colour) in zip(rows.items(), _styles(), strict=False):
        curves = [_curve(run, name) for run in own]
        steps = sorted(set.intersection(*map(set, curves)))
        if not steps:
            continue
        values = times * np.array([[curve[step] for step in steps] for curve in curves])
        few = {"marker": marker, "markersize": 5} if len(steps) < 10 else {}
        axes.plot(steps, values.mean(0), color=colour, label=row.replace("_", " "), **few)
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
    axes.set_xlabel("step")


def learning_rate(runs: Sequence[Run], spread: str = "sd") -> Figure:
    """Mean scores ± spread by learning rate, a line a method.

    A row that has the rate in its name (`rate_1e-4_ratio_4`) belongs to the line of the rest.
    """

    def rate(run: Run) -> float:
        return run.record.config["optimizer"]["learning_rate"]

    def draw(axes: Axes, panel: Panel) -> None:
        def name(run: Run) -> str:
            return re.sub(r"^rate_[^_]+_", "", run.place[1])

        for (row, own), (marker, colour) in zip(panel.rows(name).items(), _styles(), strict=False):
            points = []
            for x in sorted({rate(run) for run in own}):
                found = _scores([run for run in own if rate(run) == x], panel.metric, spread)
                if found is not None:
                    points.append((x, found.centre, found.spread or 0.0))
            if points:
                x, y, bars = zip(*points, strict=True)
                line = f"{marker}-"
                label = row.replace("_", " ")
                axes.errorbar(x, y, bars, fmt=line, color=colour, capsize=3, label=label)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel(panel.label())

    return _figure(panels(runs), [draw])


KINDS: Mapping[str, Callable[..., Figure]] = {
    "parameters": parameters,
    "training": training,
    "learning_rate": learning_rate,
}


def draw(results: Path, kind: str, out: Path, table: str | None = None, size: str = "full") -> None:
    """Draw the runs below a folder.

    Raises:
      ValueError, FileNotFoundError: no such folder, nothing to draw, or records that do not go
        together.
    """
    found = collect.find(results)
    if kind == "ranks":
        _ranks(found, out)
        return
    runs = [run for run in found if run.study]
    tables = sorted({run.study["table"] for run in runs})
    if table is not None and table not in tables:
        raise ValueError(f"no runs of '{table}' in {results}; nearest: {nearest(table, tables)}")
    own = [run for run in runs if table in (None, run.study["table"])]
    if kind == "learning_rate":  # whose runs differ, and may be scored on held-out examples
        chosen = [run for run in own if run.study["size"] == size]
    else:
        chosen = [run for each in tables for run in collect.collect(own, each, size).runs]
    figure = KINDS[kind](chosen)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def _ranks(found: list[collect.Run], out: Path) -> None:
    chosen = [run for run in found if run.record.ranks]
    if len(chosen) != 1:
        folders = ", ".join(str(run.folder) for run in chosen[:3]) or "none"
        raise ValueError(
            f"--kind=ranks draws one run: name the folder of one that chose ranks ({folders})"
        )
    ranks = chosen[0].record.ranks or {}
    out.parent.mkdir(parents=True, exist_ok=True)
    rank_map({path: np.asarray(each) for path, each in ranks.items()}, out)


def _scores(runs: Sequence[Run], metric: str, spread: str) -> Summary | None:
    scores = [score for run in runs if (score := run.score(metric)) is not None]
    return summarise(scores, "mean", spread) if scores else None


def _curve(run: Run, name: str) -> dict[int, float]:
    """What a run reported of something, by step; nothing where its log was not kept."""
    path = run.folder / "metrics.jsonl"
    rows = read_metrics(path) if path.exists() else []
    return {row["step"]: row[name] for row in rows if name in row}


def _styles() -> Any:
    """Markers and colours: a pair comes again after sixty methods."""
    return zip(cycle(MARKERS), cycle(COLOURS), strict=False)


def _figure(made: Sequence[Panel], drawings: Sequence[Callable[[Axes, Panel], None]]) -> Figure:
    """Axes for every panel and drawing, one legend for each panel beside it."""
    columns = min(2, len(made))
    lines = -(-len(made) // columns) * len(drawings)
    figure = Figure(figsize=(6.6 * columns, 3.6 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for number, panel in enumerate(made):
        line, column = divmod(number, columns)
        for offset, draw in enumerate(drawings):
            axes = grid[line * len(drawings) + offset, column]
            axes.set_visible(True)
            if offset:  # drawings of one panel are by the same steps
                axes.sharex(grid[line * len(drawings), column])
            draw(axes, panel)
            axes.grid(alpha=0.3)
            axes.margins(0.08)
            if offset == 0:
                axes.set_title(panel.title)
            if offset == 0 and axes.get_legend_handles_labels()[0]:
                axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")
    return figure
