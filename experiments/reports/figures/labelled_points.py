"""Draw named points against a cost, such that no name lies on another."""

import dataclasses
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reports.figures.style import (
    BLUE,
    GREY,
    INK,
    NORMAL,
    ORANGE,
    PAPER,
    SMALL,
    plain,
    shortened,
    width,
)

SIZE = (4.6, 3.8)
"""Of the figure, in inches."""
GAP = 1.35 * SMALL
"""The least distance between two names, in points."""
NAMES = 130.0
"""The most points that the column of names may take."""
FAR = 0.6
"""The share of the axis of scores that a point at its end may take for itself."""
WIDE = 20
"""If the largest cost is more than this many times the smallest, the axis is logarithmic."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One method. A cost of 0 on a logarithmic axis is a dashed line across the figure."""

    label: str
    cost: float
    score: float
    reference: bool = False


def draw(
    points: Sequence[Point],
    *,
    title: str,
    axis: str,
    scores: str,
    front: Sequence[int] = (),
    bar: float | None = None,
) -> Figure:
    """Scores against costs. Names stand in a column at the right, in the order of the scores.

    A point far from all others (`near`) is drawn at the edge, and its name has its score.

    Args:
      axis, scores: the labels of the two axes, with their units.
      front: which points no other beats in both, joined by a line and filled.
      bar: half the width of a typical interval, drawn once in a corner; None for none.
    """
    is_near = near([each.score for each in points])
    texts = [_text(each, kept) for each, kept in zip(points, is_near, strict=True)]
    column = max((width(text, SMALL) for text in texts), default=0.0) + 24
    figure = Figure(figsize=SIZE)
    wide, tall = 72 * SIZE[0], 72 * SIZE[1]
    left, bottom, top = 48 / wide, 44 / tall, 1 - 24 / tall
    axes = figure.add_axes((left, bottom, 1 - left - column / wide, top - bottom))
    is_logarithmic = logarithmic([each.cost for each in points])
    if is_logarithmic:
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=4)
    ends = _ends([e.score for e, kept in zip(points, is_near, strict=True) if kept], bar)
    axes.set_ylim(*ends)
    low, high = ends[0] + 0.02 * (ends[1] - ends[0]), ends[1] - 0.02 * (ends[1] - ends[0])
    points = [dataclasses.replace(e, score=min(max(e.score, low), high)) for e in points]
    for number, each in enumerate(points):
        arrow = "" if is_near[number] else "v" if each.score == low else "^"
        _mark(axes, each, number in front, is_logarithmic, arrow)
    line = [points[number] for number in front if points[number].cost > 0 or not is_logarithmic]
    if len(points) > 1 and line:
        costs = [each.cost for each in line]
        tops = [each.score for each in line]
        axes.step(costs, tops, where="post", color=BLUE, lw=1, zorder=1, label="Pareto front")
    axes.margins(x=0.08)
    axes.set_xlim(*axes.get_xlim())
    tall *= top - bottom
    targets = [tall * (each.score - ends[0]) / (ends[1] - ends[0]) for each in points]
    for each, text, place in zip(points, texts, spread(targets, GAP, tall), strict=True):
        _name(axes, each, text, place / tall, is_logarithmic)
    if bar is not None:
        _bar(axes, bar)
    axes.set_xlabel(axis, fontsize=NORMAL)
    axes.set_ylabel(scores, fontsize=NORMAL)
    axes.set_title(plain(title), fontsize=NORMAL, loc="left")
    axes.tick_params(labelsize=SMALL)
    axes.grid(color=GREY, alpha=0.3, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def logarithmic(costs: Sequence[float]) -> bool:
    """Whether the axis of these costs is; a cost of 0 is a line across it then."""
    known = [each for each in costs if each > 0]
    return bool(known) and max(known) > WIDE * min(known)


def near(scores: Sequence[float]) -> list[bool]:
    """Whether each score is near the others.

    One is not if, at an end, it takes more than FAR of the axis for itself; at most half are not.
    """
    left = sorted(scores)
    while len(left) > max(len(scores) / 2, 2):
        most = FAR * (left[-1] - left[0])
        if left[1] - left[0] > most:
            left = left[1:]
        elif left[-1] - left[-2] > most:
            left = left[:-1]
        else:
            break
    return [left[0] <= score <= left[-1] for score in scores]


def _text(point: Point, is_near: bool) -> str:
    """The name of a point, with the score of one that is drawn at the edge."""
    if is_near:
        return shortened(point.label, SMALL, NAMES)
    score = f" ({point.score:.1f})"
    return shortened(point.label, SMALL, NAMES - width(score, SMALL)) + score


def _ends(scores: Sequence[float], bar: float | None) -> tuple[float, float]:
    """The ends of the axis of scores, with room for the typical interval."""
    low, high = min(scores), max(scores)
    half = bar if bar is not None and math.isfinite(bar) else 0.0
    middle, reach = (low + high) / 2, max((high - low) / 2, half, 1e-3 * abs(high), 1e-9)
    return middle - 1.16 * reach, middle + 1.16 * reach


def spread(targets: Sequence[float], gap: float, most: float) -> list[float]:
    """Places as near to the targets as can be, `gap` apart, in the same order, from 0 to `most`.

    Places that would overlap share their mean. If there are too many for the range, they go beyond
    its ends.
    """
    order = sorted(range(len(targets)), key=lambda index: targets[index])
    groups: list[list[float]] = []  # the mean of the first's place, and how many
    for rank, index in enumerate(order):
        groups.append([targets[index] - rank * gap, 1.0])
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            mean, count = groups.pop()
            before = groups[-1]
            before[0] = (before[0] * before[1] + mean * count) / (before[1] + count)
            before[1] += count
    firsts = [mean for mean, count in groups for _ in range(int(count))]
    room = most - gap * (len(targets) - 1)
    lowest, highest = (0.0, room) if room >= 0 else (room / 2, room / 2)
    places = [0.0] * len(targets)
    for rank, index in enumerate(order):
        places[index] = min(max(firsts[rank], lowest), highest) + rank * gap
    return places


def _mark(axes: Axes, point: Point, best: bool, logarithmic: bool, arrow: str) -> None:
    """Draw a point, or an arrow for one beyond the edge."""
    colour = ORANGE if point.reference else BLUE if best else GREY
    if logarithmic and point.cost <= 0:
        axes.axhline(point.score, color=colour, linestyle="--", linewidth=1, zorder=1)
        return
    axes.plot(
        [point.cost],
        [point.score],
        arrow or ("D" if point.reference else "o"),
        ms=6.5 if point.reference else 6,
        color=colour,
        markeredgecolor=PAPER,
        zorder=4 if point.reference else 3,
        clip_on=False,
        label=plain(point.label),
    )


def _name(axes: Axes, point: Point, text: str, place: float, logarithmic: bool) -> None:
    """The name at a height (a fraction of the axes), joined to its point."""
    across = logarithmic and point.cost <= 0
    axes.annotate(
        plain(text),
        xy=(1.0 if across else point.cost, point.score),
        xycoords=axes.get_yaxis_transform() if across else "data",
        xytext=(1.03 + 8 / (72 * SIZE[0]), place),
        textcoords="axes fraction",
        fontsize=SMALL,
        fontweight="bold" if point.reference else "normal",
        va="center",
        annotation_clip=False,
        arrowprops={
            "arrowstyle": "-",
            "color": GREY,
            "alpha": 0.6,
            "linewidth": 0.6,
            "shrinkA": 1,
            "shrinkB": 0 if across else 3,
            "relpos": (0, 0.5),
        },
        zorder=2,
    )


def _bar(axes: Axes, half: float) -> None:
    """A typical interval, in a corner."""
    low, high = axes.get_ylim()
    if not math.isfinite(half):
        return
    middle = low + 0.03 * (high - low) + half
    axes.errorbar(
        [0.03],
        [middle],
        half,
        transform=axes.get_yaxis_transform(),
        color=INK,
        capsize=3,
        linewidth=1,
    )
