"""Draw how successive halving takes trials out: the scores of each at the rungs it reached."""

import dataclasses
from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.figures.style import BLUE, GREY, NORMAL, SMALL, plain

WIDTH, HEIGHT = 5.0, 3.0
"""Of the figure, in inches."""


@dataclasses.dataclass(frozen=True)
class Path:
    """One trial: (step, score) at each rung, and at its end if it was trained to the end."""

    points: Sequence[tuple[int, float]]
    completed: bool


def draw(paths: Sequence[Path], *, title: str, scores: str) -> Figure:
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
