"""Draw scores by learning rate, and those of trials that successive halving stopped.

Curves of many methods have axes of their own each, with all others behind them.
"""

import dataclasses
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from experiments.reports.figures.style import BLUE, GREY, NORMAL, ORANGE, SMALL, plain, shortened

COLUMNS = 3
WIDTH = 5.0
"""Of the figure, in inches."""
BESIDE = 1.3
"""The factor by which the axis goes on beyond the first and the last x."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """One method: points (x, y, half of an interval or NaN) by x, and the x that was chosen."""

    label: str
    points: Sequence[tuple[float, float, float]]
    chosen: float | None


def draw_curves(curves: Sequence[Curve], *, title: str, axis: str, scores: str) -> Figure:
    """All curves on equal axes, x logarithmic; the chosen x has a ring and a line down.

    Args:
      axis, scores: the labels of the two axes, with their units.
    """
    columns = min(COLUMNS, len(curves))
    tried = [x for curve in curves for x in _xy(curve)[0]]
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(WIDTH, 0.9 + 1.25 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    for number, (axes, curve) in enumerate(zip(grid.flat, curves, strict=False)):
        axes.set_xscale("log")
        axes.set_xlim(min(tried) / BESIDE, max(tried) * BESIDE)
        for other in curves:
            if other is not curve:
                x, y = _xy(other)
                axes.plot(x, y, color=GREY, alpha=0.35, linewidth=0.8, zorder=1)
        _draw_curve(axes, curve)
        most = 72 * WIDTH / columns - 40
        axes.set_title(plain(shortened(curve.label, SMALL, most)), fontsize=SMALL, pad=3)
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(labelsize=SMALL, length=2)
        axes.tick_params(labelbottom=number + columns >= len(curves))
        axes.grid(color=GREY, alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(axis, fontsize=NORMAL)
    figure.supylabel(scores, fontsize=NORMAL)
    figure.suptitle(plain(title), fontsize=NORMAL)
    return figure


def _xy(curve: Curve) -> tuple[list[float], list[float]]:
    return [x for x, _, _ in curve.points], [y for _, y, _ in curve.points]


def _draw_curve(axes: Axes, curve: Curve) -> None:
    x, y = _xy(curve)
    bars = [half for _, _, half in curve.points]
    axes.errorbar(
        x, y, bars, fmt="o-", color=BLUE, ms=3.5, lw=1.4, elinewidth=0.8, capsize=2, zorder=3,
        label=plain(curve.label),
    )  # fmt: skip
    for best, height in zip(x, y, strict=True):
        if best == curve.chosen:
            axes.axvline(best, color=ORANGE, linewidth=0.8, linestyle=":", zorder=2)
            axes.plot(
                [best], [height], "o", ms=8, markerfacecolor="none", markeredgecolor=ORANGE,
                markeredgewidth=1.4, zorder=4,
            )  # fmt: skip


WIDTH, HEIGHT = 5.0, 3.0
"""Of the figure, in inches."""


@dataclasses.dataclass(frozen=True)
class TrialPath:
    """One trial: (step, score) at each rung, and at its end if it was trained to the end."""

    points: Sequence[tuple[int, float]]
    completed: bool


def draw_halving(paths: Sequence[TrialPath], *, title: str, scores: str) -> Figure:
    """Scores by step, which is logarithmic. Trials that were stopped are grey and end in a cross.

    Args:
      scores: the label of the vertical axis, with its unit.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    for path in sorted(paths, key=lambda each: each.completed):
        steps, values = zip(*path.points, strict=True)
        colour = BLUE if path.completed else GREY
        axes.plot(steps, values, color=colour, linewidth=1.6 if path.completed else 0.8)
        marker = "o" if path.completed else "x"
        axes.plot(steps[-1:], values[-1:], color=colour, marker=marker, markersize=5)
    ticks = sorted({step for path in paths for step, _ in path.points})
    axes.set_xticks(ticks, [f"{step:,}" for step in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.tick_params(labelsize=SMALL)
    axes.set_xlabel("training steps", fontsize=NORMAL)
    axes.set_ylabel(plain(scores), fontsize=NORMAL)
    axes.set_title(plain(title), fontsize=NORMAL)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
