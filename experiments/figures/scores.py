"""Draw many runs: scores by parameters, training curves, scores by learning rate or examples."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from configs import common_tasks
from experiments.analysis import parameters as counted, scored_examples
from experiments.analysis.collect_runs import collect, elsewhere, select
from experiments.analysis.recorded_runs import Run, find, scale
from experiments.figures.panels import Panel, figure_of, metric_label, panels, scored
from experiments.figures.style import styles
from experiments.runs.rank_map import rank_map
from experiments.studies import adherence
from lora_jax.suggest import require_known

APART = 1.04
"""The factor between the places of two methods at one number of examples."""


def parameters(runs: Sequence[Run]) -> Figure:
    """Draw scores, as in the tables, against parameters (`experiments.analysis.parameters`).

    A method without adapters (a trained head alone) is a dashed line.
    """

    def draw(axes: Axes, panel: Panel) -> None:
        for (row, own), (marker, colour, _) in zip(
            panel.rows(lambda run: run.place[1]).items(), styles(), strict=False
        ):
            found = panel.score(own)
            counts = counted.counts(run.record for run in own)
            if found is None or not counts:
                continue
            count = max(counts)
            label = panel.name(row)
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
        axes.set_xlabel(counted.HEADING)
        axes.set_ylabel(metric_label(panel.metric))

    return scored(panels(runs), draw)


def training(runs: Sequence[Run]) -> Figure:
    """Draw losses by step, and scores by step below: the mean over a row's runs, and their range.

    The steps are those that all runs of a row have reported.
    """
    made = panels(runs)
    if not any(run.metrics() for run in runs):
        raise ValueError("no run has a metrics.jsonl: there are no curves to draw")

    drawings = [
        lambda axes, panel: _curves(axes, panel, "loss", 1.0, "Training loss"),
        lambda axes, panel: _curves(
            axes, panel, panel.metric, scale(panel.metric), metric_label(panel.metric)
        ),
    ]
    return figure_of(made, drawings, "means of runs, and their range")


def _curves(axes: Axes, panel: Panel, name: str, times: float, label: str) -> None:
    rows = panel.rows(lambda run: run.place[1])
    for (row, own), (marker, colour, line) in zip(rows.items(), styles(), strict=False):
        curves = [curve for run in own if (curve := _curve(run, name))]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        if not steps:
            continue
        values = times * np.array([[curve[step] for step in steps] for curve in curves])
        few = {"marker": marker, "markersize": 5} if len(steps) < 10 else {}
        axes.plot(steps, values.mean(0), linestyle=line, color=colour, label=panel.name(row), **few)
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
    axes.set_xlabel("step")
    axes.set_ylabel(label)


def learning_rate(runs: Sequence[Run]) -> Figure:
    """Draw scores, as in the tables, by learning rate, with a line for each method.

    If a row's name begins with the rate (`rate_1e-4_ratio_4`), the rest of the name is the method.
    If several settings share a rate, the best is drawn.
    """

    def rate(run: Run) -> float:
        return run.config.optimizer.learning_rate

    def draw(axes: Axes, panel: Panel) -> None:
        rows = panel.rows(lambda run: re.sub(r"^rate_[^_]+_", "", run.place[1]))
        for (row, own), style in zip(rows.items(), styles(), strict=False):
            points = []
            for x in sorted({rate(run) for run in own}):
                found = panel.best([run for run in own if rate(run) == x])
                if found is not None:
                    points.append((x, found.centre, found.spread or 0.0))
            if points:
                _line(axes, points, style, panel.name(row))
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel(metric_label(panel.metric))

    return scored(panels(runs), draw)


def examples(runs: Sequence[Run]) -> Figure:
    """Draw scores, as in the tables, by the number of training examples, with a line a method.

    A number of 0 in a config, which means all, is not drawn. If several settings of a method have
    the same number, the best is drawn.
    """

    def task(run: Run) -> str:
        name = run.config.data.name.rpartition("/")[2]
        return common_tasks.TITLES.get(name, name)

    def draw(axes: Axes, panel: Panel) -> None:
        rows = panel.rows(lambda run: run.place[1])
        counts = sorted({run.config.data.train for run in panel.runs})
        places = APART ** (np.arange(len(rows)) - (len(rows) - 1) / 2)
        for (row, own), place, style in zip(rows.items(), places, styles(), strict=False):
            points = []
            for count in counts:
                found = panel.best([run for run in own if run.config.data.train == count])
                if found is not None:  # a little apart, so that bars do not hide one another
                    points.append((count * place, found.centre, found.spread or 0.0))
            if points:
                _line(axes, points, style, panel.name(row))
        axes.set_xscale("log")
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("training examples")
        axes.set_ylabel(metric_label(panel.metric))

    limited = [run for run in runs if run.config.data.train]
    if not limited:
        raise ValueError("no run has a number of training examples, config.data.train")
    return scored(panels(limited, task), draw)


def _line(
    axes: Axes, points: Sequence[tuple[float, float, float]], style: Sequence[Any], label: str
) -> None:
    """A line through points (x, y, half of an interval), each with its bar."""
    marker, colour, dashes = style
    x, y, bars = zip(*points, strict=True)
    axes.errorbar(x, y, bars, fmt=marker, linestyle=dashes, color=colour, capsize=3, label=label)


FIGURES: Mapping[str, Callable[..., Figure]] = {
    "parameters": parameters,
    "training": training,
    "learning_rate": learning_rate,
    "examples": examples,
}


def draw(
    results: Path,
    kind: str,
    out: Path,
    table: str | None = None,
    size: str = "full",
    say: Callable[[str], object] = lambda note: None,
) -> list[Run]:
    """Draw the runs below a folder into a PNG, and return the runs that are drawn.

    Args:
      say: is called with each note on runs that were left out, such as pilots of a study.

    Raises:
      ValueError, FileNotFoundError: no such folder, nothing to draw, records that cannot share a
        table, runs of two registrations, or a record that its stored predictions contradict.
    """
    found = find(results)
    if kind == "ranks":
        return [_ranks(found, out)]
    runs = [run for run in found if run.study.table]
    tables = sorted({run.study.table for run in runs})
    if table is not None:
        require_known(table, tables, f"--table={table}: no runs of it in {results}")
    own = [run for run in runs if table in (None, run.study.table)]
    chosen: list[Run] = []
    notes: list[str] = []
    for part in _parts(own, kind):
        kept, left = select(part, None, size)
        kept, departed = adherence.as_registered(results, kept, own)
        if kind != "learning_rate":  # whose settings differ, and may be scored on held-out examples
            tables = sorted({run.study.table for run in kept})
            kept = [run for each in tables for run in collect(kept, each, size).runs]
        chosen += kept
        notes += [*left, *departed]
    if others := elsewhere(own, size) * (not any(run.completed for run in chosen)):
        raise ValueError(f"no run of size {size} has completed: nothing to draw{others}")
    for run in chosen:
        scored_examples.require_agreement(run)
    figure = FIGURES[kind](chosen)
    if size != "full":
        figure.supxlabel(f"{size.upper()} RUNS; {figure.get_supxlabel()}", fontsize="small")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    for note in dict.fromkeys(notes):
        say(note)
    return chosen


def _parts(runs: Sequence[Run], kind: str) -> list[list[Run]]:
    """Runs that are selected together: each number of examples may be a study of its own."""
    digests = sorted({run.study.registration for run in runs} - {""}) if kind == "examples" else []
    parts = [[run for run in runs if run.study.registration == each] for each in digests]
    tables = {run.study.table for part in parts for run in part}
    others = [run for run in runs if run.study.table not in tables]
    return [*parts, *([others] if others else [])]


def _ranks(found: list[Run], out: Path) -> Run:
    chosen = [run for run in found if run.record.ranks]
    if len(chosen) != 1:
        folders = ", ".join(str(run.folder) for run in chosen[:3]) or "none"
        raise ValueError(
            f"--kind=ranks draws one run: name the folder of a run that chose ranks ({folders})"
        )
    ranks = chosen[0].record.ranks or {}
    out.parent.mkdir(parents=True, exist_ok=True)
    rank_map({path: np.asarray(each) for path, each in ranks.items()}, out)
    return chosen[0]


def _curve(run: Run, name: str) -> dict[int, float]:
    """The values that a run logged under a name, by step; empty if there is no log."""
    return {row["step"]: row[name] for row in run.metrics() if name in row}
