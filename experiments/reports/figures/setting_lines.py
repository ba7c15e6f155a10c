"""Draw what each setting of a grid scores: lines for two or three settings, a panel a method.

The learning rate, or else the setting with most values, is the horizontal axis. The next one tells
the lines apart, and others the panels. Where the settings do not form a grid, as they were drawn at
random, each of them has a panel with a point for each row.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from experiments.analysis import setting_grid
from experiments.analysis.choose_methods import RATE
from experiments.analysis.setting_grid import Grid, Row, Value
from experiments.reports.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LINES,
    MARKERS,
    NORMAL,
    ORANGE,
    SMALL,
    plain,
    shortened,
)
from lora_jax.messages import agree, count

COLUMNS = 3
PANEL = 2.1
"""The width and the height of a panel, in inches."""
COLOURS = (BLUE, ORANGE, GREEN, INK, GREY)
MOST_PANELS = 12
BESIDE, SHARE = 5.0, 0.6
"""The points between two lines at one value, and the most that all may take of the way to the next.
"""
FAR = 4.0
"""Numbers whose largest is so many times the smallest have a logarithmic axis."""


def unfit(grid: Grid) -> str:
    """Why no settings are drawn; empty if they are."""
    return "" if grid.varied else "each method has one setting"


def caption(grid: Grid) -> str:
    """What a point and a bar of the picture mean, and which rows it lacks."""
    unknown = sum(row.mean is None for row in grid.rows)
    said = (
        "A point is the mean of a setting, and a bar its standard deviation over seeds. Points at "
        "one value stand side by side."
    )
    others = (
        f" {count(unknown, 'setting')} without a score {agree(unknown, 'is', 'are')} not drawn."
    )
    return said + others * bool(unknown)


def draw(grid: Grid, scores: str) -> Figure:
    """Mean scores over the settings that differ, with bars of a standard deviation.

    Args:
      scores: the label of their axis.

    Raises:
      ValueError: the settings of no method differ.
    """
    if said := unfit(grid):
        raise ValueError(f"{grid.contest.title}: {said}")
    figure = _settings(grid)
    figure.supylabel(plain(f"{scores}, mean over seeds"), fontsize=NORMAL)
    return figure


def _settings(grid: Grid) -> Figure:
    axis, *others = by_importance(grid)
    if not others:  # methods are the lines of a single panel
        return _drawn(grid, {"": grid.rows}, axis, lambda row: row.method.label, "method")
    lines, parts = others[0], rows_by_panel(grid, others[1:])
    several = sum(len({row.values[lines] for row in own}) for own in parts.values())
    if len(parts) > MOST_PANELS or len(grid.rows) < 2 * several:
        return _points(grid, [axis, *others])
    return _drawn(
        grid, parts, axis, lambda row: setting_grid.text(row.values[lines]), grid.varied[lines]
    )


def by_importance(grid: Grid) -> list[str]:
    """The keys that vary within a method, the learning rate first, then those with most values."""

    def place(key: str) -> tuple[bool, int]:
        return key != RATE, -len({row.values[key] for row in grid.rows})

    return sorted(grid.varied, key=place)


def rows_by_panel(grid: Grid, keys: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of each panel by its title: a method, and its values of these keys."""
    found: dict[str, list[Row]] = {}
    for row in grid.rows:
        title = setting_grid.described(row, {key: grid.varied[key] for key in keys})
        found.setdefault(title, []).append(row)
    return found


def _drawn(
    grid: Grid,
    panels: Mapping[str, Sequence[Row]],
    axis: str,
    line: Callable[[Row], str],
    legend: str,
) -> Figure:
    """Panels with a line for each name that `line` gives a row."""
    figure, every = _figure(grid, len(panels), share=True)
    names = list(dict.fromkeys(line(row) for row in grid.rows))
    values = [row.values[axis] for row in grid.rows]
    for axes, (title, rows) in zip(every, panels.items(), strict=True):
        for number, name in enumerate(names):
            own = [row for row in rows if line(row) == name]
            _line(axes, own, axis, values, number, name, _shift(number, len(names), values))
        _label(axes, values, title)
    figure.supxlabel(plain(grid.varied[axis]), fontsize=NORMAL)
    _legend(figure, legend)
    return figure


def _points(grid: Grid, keys: Sequence[str]) -> Figure:
    """A panel for each setting, with a point for each row, and a colour for each method."""
    figure, every = _figure(grid, len(keys), share=False)
    for axes, key in zip(every, keys, strict=True):
        values = [row.values[key] for row in grid.rows]
        for number, method in enumerate(grid.contest.methods):
            own = [row for row in grid.rows if row.method is method]
            shift = _shift(number, len(grid.contest.methods), values)
            _line(axes, own, key, values, number, method.label, shift, joined=False)
        _label(axes, values, "")
        axes.set_xlabel(plain(grid.varied[key]), fontsize=NORMAL)
    _legend(figure, "method")
    return figure


def _figure(grid: Grid, panels: int, share: bool) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, panels)
    lines = -(-panels // columns)
    size = max(4.2, PANEL * columns + 1.0), max(2.8, 0.7 + PANEL * lines)
    figure = Figure(figsize=size, layout="constrained")
    every = list(figure.subplots(lines, columns, sharex=share, sharey=True, squeeze=False).flat)
    for axes in every[panels:]:
        axes.set_visible(False)
    for axes in every[:panels]:
        axes.tick_params(labelsize=SMALL, length=2)
        axes.grid(color=GREY, alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(plain(grid.contest.title), fontsize=NORMAL)
    return figure, every[:panels]


def _line(
    axes: Axes,
    rows: Sequence[Row],
    axis: str,
    values: Sequence[Value],
    number: int,
    name: str,
    shift: float,
    joined: bool = True,
) -> None:
    points = [
        (_place(row.values[axis], values), row.mean, row.sd or 0.0)
        for row in rows
        if row.mean is not None and row.values[axis] is not None
    ]
    if not points:
        return
    places, means, bars = zip(*sorted(points), strict=True)
    drawn = axes.errorbar(
        places,
        means,
        bars,
        marker=MARKERS[number % len(MARKERS)],
        linestyle=LINES[number // len(COLOURS) % len(LINES)] if joined else "none",
        color=COLOURS[number % len(COLOURS)],
        markersize=4,
        linewidth=1.2,
        elinewidth=0.7,
        capsize=2,
        label=plain(name),
    )
    aside = ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
    for each in drawn.get_children():  # now, as limits of the axes are those of the points
        each.set_transform(axes.transData + aside)


def _shift(number: int, lines: int, values: Sequence[Value]) -> float:
    """How far a line is moved to the side, in points, so that its bars hide no others."""
    way = 72 * PANEL / len(set(values))
    return min(BESIDE, SHARE * way / lines) * (number - (lines - 1) / 2)


def numbers_of(values: Sequence[Value]) -> list[float]:
    """The distinct numbers, by size; empty if a value is a text."""
    found = {float(each) for each in values if isinstance(each, (int, float))}
    return [] if any(isinstance(each, str) for each in values) else sorted(found)


def _order(values: Sequence[Value]) -> list[str]:
    return list(dict.fromkeys(str(each) for each in values if each is not None))


def _place(value: Value, values: Sequence[Value]) -> float:
    """Where a value is drawn: numbers at their size, texts one after the other."""
    is_number = bool(numbers_of(values)) and isinstance(value, (int, float))
    return float(value) if is_number else _order(values).index(str(value))  # type: ignore[arg-type]


def _label(axes: Axes, values: Sequence[Value], title: str) -> None:
    """Ticks at the values, as far as they do not hide one another, and the title."""
    numbers, order = numbers_of(values), _order(values)
    far = bool(numbers) and numbers[0] > 0 and numbers[-1] / numbers[0] >= FAR
    if far:
        axes.set_xscale("log")
    if not numbers:
        axes.set_xticks(range(len(order)), [plain(shortened(each, SMALL, 60)) for each in order])
    elif len(numbers) <= 5:
        axes.set_xticks(numbers, [setting_grid.text(each) for each in numbers])
        axes.minorticks_off()
    axes.margins(x=0.12)
    axes.set_title(plain(shortened(title, SMALL, 72 * PANEL)), fontsize=SMALL, pad=3)


def _legend(figure: Figure, title: str) -> None:
    """Each name once, beside the panels."""
    handles = [axes.get_legend_handles_labels() for axes in figure.axes]
    pairs = itertools.chain.from_iterable(zip(*each, strict=True) for each in handles)
    once = {name: handle for handle, name in pairs}
    where = {"loc": "outside right center", "fontsize": SMALL, "title_fontsize": SMALL}
    figure.legend(once.values(), once.keys(), title=plain(title), frameon=False, **where)
