"""Draw what each setting of a grid scores as a heat map: two settings are its axes.

A panel is a method, or a method with one value of each further setting. Numbers come first as axes,
the learning rate before all others.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.analysis import setting_grid
from experiments.analysis.recorded_runs import sign
from experiments.analysis.setting_grid import Grid, Row, Value
from experiments.reports.figures.setting_lines import (
    MOST_PANELS,
    by_importance,
    numbers_of,
    rows_by_panel,
)
from experiments.reports.figures.style import (
    BLUE,
    GREY,
    NORMAL,
    ORANGE,
    SMALL,
    plain,
    shortened,
)
from experiments.reports.tables.cells import DECIMALS, score_text
from lora_jax.table import NONE

CELL = 0.66, 0.42
"""The width and the height of a cell, in inches."""
WIDEST = 9.0
"""The most inches of panels side by side."""
TINY = 6.5
SHADES = tuple((*to_rgb(BLUE), float(alpha)) for alpha in np.linspace(0.05, 0.6, 12))
"""From the worst score to the best: light enough for the letters on it."""
CAPTION = (
    "A cell is the mean of a setting over seeds. The thick frame is the best setting of all, and a "
    "thin one the best of its method. A hatched setting diverged, or has no score. A setting with "
    "a dash was not tried."
)


def unfit(grid: Grid) -> str:
    """Why the settings of a grid are no heat map; empty if they are one."""
    if not grid.varied:
        return "each method has one setting"
    if len(grid.varied) == 1:
        return f"only {next(iter(grid.varied.values()))} varies, and a heat map needs two settings"
    across, up, *others = axes_of(grid)
    parts = rows_by_panel(grid, others)
    cells = sum(len(_values(rows, across)) * len(_values(rows, up)) for rows in parts.values())
    if len(parts) > MOST_PANELS:
        return f"{len(parts)} panels are too many ({MOST_PANELS} at most)"
    if len(grid.rows) < 2 * len(parts) or 2 * len(grid.rows) < cells:
        return "the settings do not form a grid, as they were drawn at random"
    return ""


def axes_of(grid: Grid) -> list[str]:
    """The keys that vary: the horizontal axis, the vertical one, and those of the panels."""

    def is_text(key: str) -> bool:
        return not numbers_of([row.values[key] for row in grid.rows])

    return sorted(by_importance(grid), key=is_text)


def draw(grid: Grid, scores: str) -> Figure:
    """A cell for each setting with its mean score; the best one of all is framed.

    Args:
      scores: the label of the scores.

    Raises:
      ValueError: the settings are no heat map (`unfit`).
    """
    if said := unfit(grid):
        raise ValueError(f"{grid.contest.title}: {said}")
    across, up, *others = axes_of(grid)
    parts = rows_by_panel(grid, others)
    figure, every = _figure(parts, across, up)
    known = [row.mean or 0.0 for row in grid.rows if _is_shaded(row)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    shades = ListedColormap(SHADES if sign(grid.contest.metric) > 0 else SHADES[::-1])
    shade = ScalarMappable(Normalize(low, high if high > low else low + 1.0), shades)
    for axes, (title, rows) in zip(every, parts.items(), strict=True):
        own = [row for row in grid.rows if row.method is rows[0].method]
        columns, lines = _values(own, across), _values(own, up)
        _label(axes, columns, lines, title)
        tried = {(row.values[across], row.values[up]): row for row in rows}
        for (x, column), (y, line) in product(enumerate(columns), enumerate(lines)):
            if row := tried.get((column, line)):
                _cell(axes, row, (x, y), shade, grid.contest.metric)
            else:
                axes.text(x, y, NONE, color=GREY, ha="center", va="center")
    figure.suptitle(plain(grid.contest.title), fontsize=NORMAL)
    figure.supxlabel(plain(grid.varied[across]), fontsize=NORMAL)
    figure.supylabel(plain(grid.varied[up]), fontsize=NORMAL)
    bar = figure.colorbar(shade, ax=every, shrink=0.9, pad=0.02)
    bar.set_label(plain(f"{scores}, mean over seeds"), fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def _is_shaded(row: Row) -> bool:
    return row.mean is not None and "diverged" not in row.lost


def _values(rows: Sequence[Row], key: str) -> list[Value]:
    """The distinct values of a setting: numbers by size, then texts, then none."""
    return sorted(dict.fromkeys(row.values[key] for row in rows), key=setting_grid.place)


def _figure(parts: Mapping[str, Sequence[Row]], across: str, up: str) -> tuple[Figure, list[Axes]]:
    every = [row for rows in parts.values() for row in rows]
    width = 0.5 + CELL[0] * len(_values(every, across))
    height = 0.5 + CELL[1] * len(_values(every, up))
    columns = min(len(parts), max(1, int(WIDEST / width)))
    lines = -(-len(parts) // columns)
    size = max(4.2, width * columns + 1.3), max(2.2, height * lines + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    found = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in found[len(parts) :]:
        axes.set_visible(False)
    return figure, found[: len(parts)]


def _label(axes: Axes, columns: Sequence[Value], lines: Sequence[Value], title: str) -> None:
    """The values at the axes, which are as long as there are any, and the title."""
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(lines) - 0.5))
    axes.set_xticks(range(len(columns)), [_tick(each) for each in columns])
    axes.set_yticks(range(len(lines)), [_tick(each) for each in lines])
    axes.tick_params(labelsize=SMALL, length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(plain(shortened(title, SMALL, 72 * CELL[0] * len(columns) + 30)), fontsize=SMALL)


def _tick(value: Value) -> str:
    return plain(shortened(setting_grid.text(value), SMALL, 72 * CELL[0]))


def _cell(axes: Axes, row: Row, place: tuple[int, int], shade: ScalarMappable, metric: str) -> None:
    """The cell of a setting: its score on a shade, or hatched if it diverged or has none."""
    corner = place[0] - 0.47, place[1] - 0.46
    cell = Rectangle(corner, 0.94, 0.92, linewidth=0)
    if _is_shaded(row):
        cell.set_facecolor(tuple(shade.to_rgba(np.array([row.mean]))[0]))
    else:
        cell.set(facecolor="none", edgecolor=GREY, hatch="////", alpha=0.4)
    axes.add_patch(cell)
    lines = [] if row.mean is None else [score_text(row.mean, metric, DECIMALS)]
    lines += [f"{len(own)} {status}" for status, own in row.lost.items()]
    size = SMALL if len(lines) == 1 and row.mean is not None else TINY
    weight = "bold" if row.best == "all" else "normal"
    axes.text(*place, "\n".join(lines), fontsize=size, ha="center", va="center", weight=weight)
    if row.best:
        wide = 2.2 if row.best == "all" else 1.0
        frame = Rectangle(corner, 0.94, 0.92, fill=False, edgecolor=ORANGE, linewidth=wide)
        axes.add_patch(frame)
