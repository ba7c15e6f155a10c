"""Draw differences from a reference with their intervals, one line for each method."""

import dataclasses
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.reports.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    NORMAL,
    ORANGE,
    PAPER,
    SMALL,
    plain,
    shortened,
)

LOOKS = {
    "better": ("^", BLUE, BLUE),
    "worse": ("v", ORANGE, ORANGE),
    "equivalent": ("s", GREEN, GREEN),
    "undecided": ("o", PAPER, GREY),
    "": ("|", PAPER, INK),
}
"""The marker of each verdict, its colour inside, and that of its edge and bar.

A filled marker is a verdict. Without one, as for the reference, there is only a stroke.
"""
WIDTH = 4.6
"""Of the figure, in inches."""
FAR = 8.0
"""How many median distances from the median a line is far from the others."""
NAMES = 100.0
"""The most points that the name of a method may take."""
BESIDE = 75.0
"""The same where something stands behind the name."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One method: its difference, the ends of the interval (None if undefined), and a verdict."""

    label: str
    mean: float
    low: float | None
    high: float | None
    verdict: str = ""
    behind: str = ""
    """What stands behind the label, and is never cut."""


def forest(
    lines: Sequence[Line],
    *,
    title: str,
    axis: str,
    margin: float | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A forest plot: the lines from top to bottom, and their numbers at the right.

    Args:
      lines: in the order in which they are drawn.
      axis: what the horizontal axis shows, with its unit.
      margin: differences within it count as equivalent; they are a grey band. None for no band.
      limits: of the horizontal axis, to compare figures; by default those of `shown`.
    """
    figure = Figure(figsize=(WIDTH, 1.2 + 0.24 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color=INK, linewidth=0.8)
    if margin is not None:
        axes.axvspan(-margin, margin, color=GREY, alpha=0.2, linewidth=0)
    low, high = limits or shown(lines, margin)
    axes.set_xlim(low, high)
    for place, line in enumerate(lines):
        _draw(axes, place, line, (low, high))
    axes.set_yticks(range(len(lines)), [_name(line) for line in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(labelsize=NORMAL, length=2)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(plain(axis), fontsize=NORMAL)
    axes.set_title(plain(title), fontsize=NORMAL, loc="left")
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.grid(axis="x", color=GREY, alpha=0.3, linewidth=0.5)
    axes.set_axisbelow(True)
    keys = _keys(lines, margin)
    if keys:
        figure.legend(
            handles=keys, loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False
        )
    return figure


def shown(lines: Sequence[Line], margin: float | None = None) -> tuple[float, float]:
    """The ends of an axis for these lines, with zero and the margin.

    A few lines that are far from all others (by more than FAR median distances from the median)
    would leave no room for these; they are beyond the ends.
    """
    means = sorted(line.mean for line in lines)
    middle = statistics.median(means) if means else 0.0
    reach = FAR * statistics.median([abs(each - middle) for each in means] or [0.0])
    near = [line for line in lines if abs(line.mean - middle) <= reach] or list(lines)
    ends = [0.0, margin or 0.0, -(margin or 0.0)]
    for line in near:
        ends += [each for each in (line.mean, line.low, line.high) if each is not None]
    low, high = min(ends), max(ends)
    for line in lines:  # one whose mean is shown all the same is shown whole
        if low <= line.mean <= high:
            ends += [each for each in (line.low, line.high) if each is not None]
    low, high = min(ends), max(ends)
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def beyond(lines: Sequence[Line], ends: tuple[float, float]) -> bool:
    """Whether any line is beyond the ends of an axis, and so an arrow at its edge."""
    return any(not ends[0] <= line.mean <= ends[1] for line in lines)


def numbers(line: Line) -> str:
    """A difference and its interval as text."""
    if line.low is None or line.high is None:
        return _signed(line.mean)
    return f"{_signed(line.mean)} [{_signed(line.low)}, {_signed(line.high)}]"


def _name(line: Line) -> str:
    most = BESIDE if line.behind else NAMES
    return plain(shortened(line.label, NORMAL, most) + line.behind)


def _signed(value: float) -> str:
    return f"{value:+z.2f}"


def _draw(axes: Axes, place: int, line: Line, ends: tuple[float, float]) -> None:
    marker, inside, edge = LOOKS[line.verdict]
    at, inset = line.mean, 0.02 * (ends[1] - ends[0])
    if at < ends[0]:
        at, marker = ends[0] + inset, "<"
    elif at > ends[1]:
        at, marker = ends[1] - inset, ">"
    if line.low is not None and line.high is not None:
        low, high = max(line.low, ends[0]), min(line.high, ends[1])
        if low < high:
            axes.hlines(place, low, high, color=edge, lw=1.6)
    (drawn,) = axes.plot([at], [place], marker, ms=6, clip_on=False, zorder=3, color=edge)
    drawn.set_markerfacecolor(inside)
    drawn.set_markeredgewidth(2.0 if marker == "|" else 1.0)
    axes.annotate(
        numbers(line),
        (1.02, place),
        xycoords=axes.get_yaxis_transform(),
        va="center",
        fontsize=SMALL,
    )


def _keys(lines: Sequence[Line], margin: float | None) -> list[Line2D | Patch]:
    made: list[Line2D | Patch] = []
    for verdict, (marker, inside, edge) in LOOKS.items():
        if verdict and any(line.verdict == verdict for line in lines):
            key = Line2D([], [], marker=marker, linewidth=1.6, color=edge, label=verdict)
            key.set_markerfacecolor(inside)
            made.append(key)
    if margin is not None:
        made.append(Patch(color=GREY, alpha=0.2, label=f"margin ±{margin:g}"))
    return made
