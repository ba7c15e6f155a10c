"""Pictures of a report: scores by learning rate, and against what a method takes."""

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.analysis import collect_runs
from experiments.analysis.choose_methods import Contest, Method, saved_score
from experiments.figures.scores import metric_label, styles
from experiments.reports.sheets import Costs, costs, interval, machines

AXES: Mapping[str, Callable[[Costs], float]] = {
    "trained parameters, with the head": lambda spent: spent.trained,
    "training time (s)": lambda spent: spent.seconds,
    "peak memory of the process (GiB),\nwhich trials of one program share": lambda spent: (
        spent.memory / 2**30
    ),
}
MACHINES = tuple(AXES)[1:]
"""What no two machines have in common."""
WIDE = 20
"""How many times the smallest cost the largest is where an axis is logarithmic."""
SIZE = (4.8, 4.2)
"""In inches: to be read on a telephone, and two or three beside each other on a screen."""


def figures(contest: Contest) -> dict[str, Figure]:
    """The pictures of a contest by what they show; those of which there is nothing are left out."""
    made = {"Scores by learning rate": rates(contest)}
    for name, of in AXES.items():
        made[f"Scores against {name.partition(',')[0].partition(' (')[0]}"] = against(
            contest, name, of
        )
    return {name: figure for name, figure in made.items() if figure is not None}


def rates(contest: Contest) -> Figure | None:
    """Mean scores by learning rate on the examples that settings were chosen on, best ringed.

    Where several settings share a rate, the best of them; bars are 95% intervals over seeds.
    """
    figure, axes = _axes(contest)
    for method, (marker, colour, dashes) in zip(contest.methods, styles(), strict=False):
        if points := by_rate(method):
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
    axes.set_xlabel("learning rate (ringed: chosen)")
    where = "held-out examples" if held else "development set"
    axes.set_ylabel(f"{metric_label(contest.metric)}, {where}")
    return _finished(figure, axes)


def by_rate(method: Method) -> list[tuple[float, float, float]]:
    """Learning rates, the best mean score at each, and half of its 95% interval, NaN for none."""
    best: dict[float, tuple[float, float]] = {}
    for setting in method.tried:
        runs = setting.held_out or setting.development
        found = [saved_score(run) for run in runs if run.completed]
        scores = [score for score in found if score is not None]
        if scores and best.get(setting.rate, (-np.inf, 0))[0] < statistics.fmean(scores):
            whole = collect_runs.summarise(scores, "mean", "ci95")
            best[setting.rate] = whole.centre, whole.spread or np.nan
    return [(rate, *best[rate]) for rate in sorted(best)]


def against(contest: Contest, name: str, of: Callable[[Costs], float]) -> Figure | None:
    """Mean scores and their 95% intervals against a cost, and the line of what nothing beats.

    There is no such line through times or memory of machines that are not alike.
    """
    alike = name not in MACHINES or len(machines(contest)) < 2
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
    axes.set_xlabel(name if alike else f"{name}\nof UNLIKE MACHINES")
    axes.set_ylabel(metric_label(contest.metric))
    return _finished(figure, axes)


def pareto(costs: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray) -> list[int]:
    """Which points no other beats in one of cost and score without losing in the other, by cost.

    Of equal points the first.
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
    """Text that is not taken for a formula, nor (from `_`) left out of legends."""
    return text.replace("$", r"\$").lstrip("_")


def _finished(figure: Figure, axes: Axes) -> Figure:
    axes.grid(alpha=0.3)
    axes.margins(0.08)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure
