"""A picture of what a suite has measured: its ratios with their quartiles, or its curves."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.benchmarks.results import Curve, Found, Measured

COLUMNS = 3
"""The most curves in a row."""


def draw(measured: Sequence[Measured], title: str) -> bytes | None:
    """A PNG; None if there is nothing to draw."""
    ratios = [(f"{each.name}: {found.what}", found) for each in measured for found in each.ratios]
    curves = [curve for each in measured for curve in each.curves]
    if not ratios and not curves:
        return None
    figure = _ratios(ratios) if ratios else _curves(curves)
    figure.suptitle(title)
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=150)
    return made.getvalue()


def _ratios(ratios: Sequence[tuple[str, Found]]) -> Figure:
    """A line for each ratio, with its quartiles; what it must be is a cross."""
    figure = Figure((9, 1.2 + 0.3 * len(ratios)), layout="constrained")
    axes = figure.subplots()
    for place, (_, found) in enumerate(ratios):
        colour = "C3" if found.met is False else "C0"
        axes.hlines(place, found.low, found.high, color=colour)
        axes.plot(found.middle, place, "o", color=colour)
        if found.must is not None:
            axes.plot(found.must, place, "x", color="black")
    axes.set_yticks(range(len(ratios)), [name for name, _ in ratios], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="grey", linewidth=0.5)
    axes.set_xlabel("ratio (line: quartiles; cross: what it must be; red: missed)")
    return figure


def _curves(curves: Sequence[Curve]) -> Figure:
    """A panel for each curve; a broken line is what theory allows, through the first point."""
    rows = -(-len(curves) // COLUMNS)
    figure = Figure((4 * COLUMNS, 3 * rows), layout="constrained")
    panels = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for unused in panels[len(curves) :]:
        unused.remove()
    for axes, curve in zip(panels, curves, strict=False):
        axes.loglog(curve.at, curve.values, "o-")
        first = curve.values[0]
        theory = [first * (x / curve.at[0]) ** curve.allowed for x in curve.at]
        axes.loglog(curve.at, theory, "--", color="grey")
        axes.set(xlabel=curve.over, ylabel=curve.of.replace("_", " "))
        axes.set_xticks(curve.at, [f"{x:,g}" for x in curve.at], fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(f"exponent {curve.exponent:.2f}, in theory {curve.allowed:.2f}", fontsize=8)
    return figure
