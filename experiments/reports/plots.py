"""Draw the pictures of a report: scores by learning rate, and scores against costs."""

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.analysis import collect_runs
from experiments.analysis.choose_methods import Contest, Method, saved_scores
from experiments.figures.scores import metric_label, styles
from experiments.reports.sheets import Costs, costs, interval, machines

AXES: Mapping[str, Callable[[Costs], float]] = {
    "parameters, without the head": lambda spent: max(spent.parameters, default=0),
    "training time (s)": lambda spent: spent.seconds,
    "peak memory of the process (GiB),\nwhich trials of one program share": lambda spent: (
        spent.memory / 2**30
    ),
}
MACHINE_AXES = tuple(AXES)[1:]
"""The costs that depend on the machine."""
WIDE = 20
"""If the largest cost is more than this many times the smallest, the axis is logarithmic."""
SIZE = (4.8, 4.2)
"""Width and height in inches: readable on a phone, and two or three side by side on a screen."""


def figures(contest: Contest) -> dict[str, Figure]:
    """The pictures of a contest by caption; pictures without data are left out."""
    made = {"Scores by learning rate": by_rate(contest)}
    for name, of in AXES.items():
        made[f"Scores against {name.partition(',')[0].partition(' (')[0]}"] = by_cost(
            contest, name, of
        )
    return {name: figure for name, figure in made.items() if figure is not None}


def by_rate(contest: Contest) -> Figure | None:
    """Draw mean scores by learning rate, on the examples that settings were chosen on.

    The chosen rate is circled. If several settings share a rate, the best is drawn. Bars are 95%
    intervals over seeds. The result is None without data.
    """
    figure, axes = _axes(contest)
    for method, (marker, colour, dashes) in zip(contest.methods, styles(), strict=False):
        if points := best_by_rate(method):
            x, y, bars = zip(*points, strict=True)
            line = f"{marker}{dashes}"
            axes.errorbar(x, y, bars, fmt=line, color=colour, capsize=3, label=_plain(method.label))
            best = [point for point in points if method.chosen and point[0] == method.chosen.rate]
            for x, y, _ in best:
                axes.plot([x], [y], "o", ms=13, mfc="none", mec=colour, mew=1.5)
    if not axes.has_data():
        return None
    held = any(method.chosen_on == "held-out" for method in contest.methods) or contest.held_out
    tried = sorted({each.rate for method in contest.methods for each in method.tried})
    axes.set_xscale("log")
    axes.set_xticks(tried, [f"{rate:g}" for rate in tried], rotation=40, ha="right")
    axes.set_xticks([], minor=True)
    axes.set_xlabel("learning rate (circled: chosen)")
    where = "held-out examples" if held else "development set"
    axes.set_ylabel(f"{metric_label(contest.metric)}, {where}")
    return _finished(figure, axes)


def best_by_rate(method: Method) -> list[tuple[float, float, float]]:
    """Each learning rate, its best mean score, and half of the 95% interval (NaN if undefined)."""
    best: dict[float, tuple[float, float]] = {}
    for setting in method.tried:
        runs = setting.of("held_out") or setting.of("development")
        scores = [score for _, score in saved_scores(runs)]
        if scores and best.get(setting.rate, (-np.inf, 0))[0] < statistics.fmean(scores):
            whole = collect_runs.summarise(scores, "mean", "ci95")
            best[setting.rate] = whole.centre, whole.spread or np.nan
    return [(rate, *best[rate]) for rate in sorted(best)]


def by_cost(contest: Contest, name: str, of: Callable[[Costs], float]) -> Figure | None:
    """Draw mean scores and their 95% intervals against a cost, with the Pareto front.

    Time or memory from different machines has no front. The result is None without data.

    Args:
      name: the label of the axis, in AXES.
      of: gives the cost.
    """
    alike = name not in MACHINE_AXES or len(machines(contest)) < 2
    figure, axes = _axes(contest)
    points = []
    for method, (marker, colour, _) in zip(contest.methods, styles(), strict=False):
        scores, spent = list(method.scores().values()), costs(method)
        if not scores or spent is None:
            continue
        mean, ends = statistics.fmean(scores), interval(method)
        bar = None if ends is None else (ends[1] - ends[0]) / 2
        points.append((of(spent), mean))
        axes.errorbar(
            [of(spent)],
            [mean],
            bar,
            fmt=marker,
            color=colour,
            capsize=3,
            label=_plain(method.label),
        )
    if not points:
        return None
    values = np.array(points)
    front = values[pareto(values[:, 0], values[:, 1])]
    if len(points) > 1 and alike:
        axes.step(
            front[:, 0], front[:, 1], where="post", color="0.6", zorder=0, label="Pareto front"
        )
    if values[:, 0].max() > WIDE * values[:, 0].min() > 0:
        axes.set_xscale("log")
    axes.set_xlabel(name if alike else f"{name}\nof DIFFERENT MACHINES")
    axes.set_ylabel(metric_label(contest.metric))
    return _finished(figure, axes)


def pareto(costs: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray) -> list[int]:
    """The indices of the points on the Pareto front of low cost and high score, sorted by cost.

    Of equal points only the first is on it.
    """
    front: list[int] = []
    for index in np.lexsort((-np.asarray(scores), np.asarray(costs))):
        if not front or scores[index] > scores[front[-1]]:
            front.append(int(index))
    return front


def _axes(contest: Contest) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_plain(contest.title), fontsize="medium")
    return figure, axes


def _plain(text: str) -> str:
    """Escape a text so that matplotlib takes no `$` for a formula and hides no label after `_`."""
    return text.replace("$", r"\$").lstrip("_")


def _finished(figure: Figure, axes: Axes) -> Figure:
    axes.grid(alpha=0.3)
    axes.margins(0.08)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure
