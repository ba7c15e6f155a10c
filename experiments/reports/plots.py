"""Draw the pictures of a contest: scores against costs, and scores by learning rate."""

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.analysis import collect_runs, parameters
from experiments.analysis.choose_methods import Contest, Method, by_number
from experiments.figures import labelled_points, small_multiples
from experiments.figures.panels import metric_label
from experiments.reports import searched
from experiments.reports.pictures import Picture
from experiments.reports.sheets import Costs, costs, interval, unlike

TIME = "training time (s)"
AXES: Mapping[str, Callable[[Costs], float | None]] = {
    parameters.HEADING: lambda spent: max(spent.parameters, default=None),
    TIME: lambda spent: spent.seconds,
}
"""The costs of methods, None where records lack them.

Memory is not one of them: that of a process is the peak of all that it did.
"""


def pictures(contest: Contest, reference: Method | None = None) -> list[Picture]:
    """The pictures of a contest; those without data are left out.

    Args:
      reference: the method that is marked.
    """
    made = []
    for name, of in AXES.items():
        short = name.partition(" (")[0]
        if (drawn := by_cost(contest, name, of, reference)) is not None:
            title = f"Scores against {short}"
            said = cost_caption(contest, of, reference)
            made.append(Picture(short.replace(" ", "_"), title, said, drawn))
    if (drawn := by_rate(contest)) is not None:
        rates = Picture("learning_rates", "Scores by learning rate", rate_caption(contest), drawn)
        made.insert(1, rates)
    if (rungs := searched.picture(contest)) is not None:
        made.append(rungs)
    return made


def by_rate(contest: Contest) -> Figure | None:
    """Draw mean scores by learning rate, on the examples that settings were chosen on.

    If several settings share a rate, the best is drawn. The result is None without data.
    """
    curves = [
        small_multiples.Curve(method.label, points, method.chosen and method.chosen.rate)
        for method in contest.methods
        if (points := best_by_rate(method))
    ]
    if not curves:
        return None
    return small_multiples.draw(
        curves,
        title=contest.title,
        axis="learning rate",
        scores=f"{metric_label(contest.metric)}, {_tuned_on(contest)}",
    )


def rate_caption(contest: Contest) -> str:
    seeds = [
        len(collect_runs.means_of_draws(by_number(setting.of(method.phase))))
        for method in contest.methods
        for setting in method.tried
    ]
    counted = [each for each in seeds if each]
    n = _range(counted) if counted else "0"
    bar = "a bar is the 95% interval of the mean over seeds" if max(counted, default=0) > 1 else ""
    return (
        f"Each method in blue, all others behind it in grey. Means on the {_tuned_on(contest)}, "
        f"n = {n} for each rate{'; ' * bool(bar)}{bar}. The ring is the chosen rate."
    )


def cost_caption(
    contest: Contest, of: Callable[[Costs], float | None], reference: Method | None
) -> str:
    known = [scores for method in contest.methods if (scores := method.counted())]
    said = f"Means over seeds, n = {_range([len(each) for each in known])}." if known else ""
    if typical(contest) is not None:
        said += (
            " The bar in the corner is the median of the methods' 95% intervals; each method's own "
            "is in the table."
        )
    said += " Orange: the reference." * (reference is not None)
    said += " Blue: no method has a better score for less."
    if not all(labelled_points.near([statistics.fmean(scores) for scores in known])):
        said += " A score beyond the axis is drawn at its edge; its name gives it."
    spent = [found for method in contest.methods if (found := costs(method)) is not None]
    drawn = [cost for each in spent if (cost := of(each)) is not None]
    line = 0 in drawn and labelled_points.logarithmic(drawn)
    return said + " A dashed line is a method without an adapter." * line


def typical(contest: Contest) -> float | None:
    """Half of the median 95% interval of the methods' means; None if none has an interval."""
    ends = [found for method in contest.methods if (found := interval(method)) is not None]
    return statistics.median((high - low) / 2 for low, high in ends) if ends else None


def best_by_rate(method: Method) -> list[tuple[float, float, float]]:
    """Each learning rate, its best mean score, and half of the 95% interval (NaN if undefined)."""
    best: dict[float, tuple[float, float]] = {}
    for setting in method.tried:
        scores = collect_runs.means_of_draws(by_number(setting.of(method.phase))).tolist()
        if scores and best.get(setting.rate, (-np.inf, 0))[0] < statistics.fmean(scores):
            whole = collect_runs.summarise(scores, "mean", "ci95")
            best[setting.rate] = whole.centre, whole.spread or np.nan
    return [(rate, *best[rate]) for rate in sorted(best)]


def by_cost(
    contest: Contest,
    name: str,
    of: Callable[[Costs], float | None],
    reference: Method | None = None,
) -> Figure | None:
    """Draw mean scores against a cost, with the Pareto front.

    The result is None without data, and of time that is not all of one machine.

    Args:
      name: the label of the axis, in AXES.
      of: gives the cost.
    """
    if name == TIME and unlike(contest):
        return None
    points = []
    for method in contest.methods:
        scores, spent = method.counted(), costs(method)
        cost = None if spent is None else of(spent)
        if scores and cost is not None:
            mean = statistics.fmean(scores)
            own = method is reference
            points.append(labelled_points.Point(method.label, cost, mean, own))
    if not points:
        return None
    front = pareto([each.cost for each in points], [each.score for each in points])
    return labelled_points.draw(
        points,
        title=contest.title,
        axis=name,
        scores=metric_label(contest.metric),
        front=front,
        bar=typical(contest),
    )


def pareto(costs: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray) -> list[int]:
    """The indices of the points on the Pareto front of low cost and high score, sorted by cost.

    Of equal points only the first is on it.
    """
    front: list[int] = []
    for index in np.lexsort((-np.asarray(scores), np.asarray(costs))):
        if not front or scores[index] > scores[front[-1]]:
            front.append(int(index))
    return front


def _tuned_on(contest: Contest) -> str:
    held = any(method.phase == "held_out" for method in contest.methods)
    return "held-out examples" if held else "development set"


def _range(counts: Sequence[int]) -> str:
    fewest, most = min(counts), max(counts)
    return str(most) if fewest == most else f"{fewest} to {most}"
