"""The pictures of a report: forest plots, scores by cost, curves over rates, stopped trials."""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.analysis import collect_runs, parameters, setting_grid
from experiments.analysis.choose_methods import Contest, Method, by_number, halved
from experiments.analysis.recorded_runs import Run, scale, sign
from experiments.analysis.setting_grid import Grid
from experiments.reports.figures import curves, forest, labelled_points, setting_heat, setting_lines
from experiments.reports.figures.curves import Curve, draw_curves
from experiments.reports.figures.scores import metric_label
from experiments.reports.figures.style import NORMAL
from experiments.reports.findings import Finding, Findings
from experiments.reports.sheets import (
    Costs,
    costs,
    interval,
    interval_of,
    of_tasks,
    unlike,
)
from lora_jax.messages import span

FAR = (
    " An arrow is a difference beyond the axis, whose number is at the right; of its bar, the part "
    "on the axis is drawn."
)
FEWER = " A method that lacks tasks comes last; its mean is over those that its name counts."
MANY = (
    " Verdicts take all comparisons into account, so the bar of a method that is equivalent or "
    "undecided may miss zero."
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure, the name of its files, its heading, and a caption that says what a bar means."""

    stem: str
    title: str
    caption: str
    figure: Figure


def marked(picture: Picture, size: str) -> Picture:
    """The picture of runs of a size, which its figure, heading and caption say of all but full."""
    if size == "full":
        return picture
    mark = f"{size} runs"
    picture.figure.text(0.005, 0.005, mark, fontsize=NORMAL)  # in a corner, below what is drawn
    title, caption = f"{mark}: {picture.title}", f"{mark}: {picture.caption}"
    return dataclasses.replace(picture, title=title, caption=caption)


def forests(found: Findings) -> list[Picture]:
    """The differences from the reference: over all tasks, by question, and by task.

    Figures over all tasks share one axis, and so do those of single tasks.
    """
    return [*_over_tasks(found), *_of_tasks(found)]


def _over_tasks(found: Findings) -> Iterator[Picture]:
    """The figure of all methods, if they were tested over all tasks, and one for each question."""
    whole = [each for each in found.methods if each.over_tasks is not None]
    if not whole:
        return
    drawings = {_all(found): [_over_all(found, each, each.label) for each in whole]}
    for question in found.questions:
        drawings[question.title] = [
            _over_all(found, each, name) if each else forest.Line(name, 0.0, None, None)
            for name, each in question.answers
        ]
    limits = forest.shown(drawings[_all(found)], found.margin)
    what = f"n = {span(found.seeds, 'seed')}"
    if len(found.tasks) > 1:
        what = f"Mean difference over {len(found.tasks)} tasks of the same weight, {what}"
    for title, lines in drawings.items():
        stem = "gain_over_tasks" if title == _all(found) else f"gain_by_{title}"
        fewer = FEWER * any(line.behind for line in lines)
        yield _picture(found, stem, title, lines, limits, what, f"{fewer}{MANY}")


def _all(found: Findings) -> str:
    """The title of the figure over all tasks; of a single one, it is that of the task."""
    return found.tasks[0] if len(found.tasks) == 1 else "Mean over tasks"


def _of_tasks(found: Findings) -> Iterator[Picture]:
    if len(found.tasks) == 1 and any(each.over_tasks is not None for each in found.methods):
        return  # it is the figure over all tasks
    own = {task: [each for each in found.methods if task in each.by_task] for task in found.tasks}
    drawings = {
        task: [_forest_line(each, task) for each in methods] for task, methods in own.items()
    }
    limits = forest.shown([line for lines in drawings.values() for line in lines], found.margin)
    for task, lines in drawings.items():
        what = f"n = {span([each.by_task[task].n for each in own[task]], 'seed')}"
        many = MANY * any(each.verdict_of_task.get(task) for each in own[task])
        yield _picture(found, f"gain_{task}", task, lines, limits, what, many)


def _picture(
    found: Findings,
    stem: str,
    title: str,
    lines: Sequence[forest.Line],
    limits: tuple[float, float],
    what: str,
    more: str,
) -> Picture:
    """A forest plot, and a caption that says what is drawn, what a bar means, and more."""
    lower = ", lower is better" * found.lower
    axis = f"difference from {found.reference} ({found.unit}{lower})"
    drawn = forest.forest(lines, title=title, axis=axis, margin=found.margin, limits=limits)
    bar = f"a bar is the {100 * (1 - found.level):g}% interval of that difference alone"
    band = "" if found.margin is None else f" The grey band is the margin, ±{found.margin:g}."
    far = FAR * forest.beyond(lines, limits)
    return Picture(stem, title, f"{what}, {found.how}; {bar}.{band}{far}{more}", drawn)


def _over_all(found: Findings, method: Finding, name: str) -> forest.Line:
    """The line of a mean over tasks, with the number of these behind its name if it lacks some."""
    line = dataclasses.replace(_forest_line(method, None), label=name)
    tasks = found.planned_tasks or len(found.tasks)
    return dataclasses.replace(line, behind=of_tasks(len(method.by_task), tasks))


def _forest_line(found: Finding, task: str | None) -> forest.Line:
    estimate = found.over_tasks if task is None else found.by_task[task]
    assert estimate is not None
    verdict = found.verdict if task is None else found.verdict_of_task.get(task, "")
    return forest.Line(found.label, estimate.mean, estimate.low, estimate.high, verdict)


def halving_picture(contest: Contest) -> Picture | None:
    """Scores at the rungs, for the trials of all methods; None if none were halved."""
    runs = [run for method in contest.methods for run in halved(method)]
    drawn = [(run, path) for run in runs if (path := _trial_path(run, contest.metric))]
    if not drawn:
        return None
    statuses = Counter(run.record.status for run, _ in drawn)
    ended, diverged = statuses["completed"], statuses["diverged"]
    stopped = f"{len(drawn) - ended - diverged} were stopped"
    stopped += f" and {diverged} diverged" * bool(diverged)
    steps = sum(run.record.steps for run in runs)
    said = (
        f"Scores on held-out examples at each rung, n = {len(drawn)} trials, of which {ended} "
        f"trained to the end (blue) and {stopped} (grey, a cross at the last rung); {steps:,} "
        "training steps in all."
    )
    paths = [path for _, path in drawn]
    figure = curves.draw_halving(paths, title=contest.title, scores=metric_label(contest.metric))
    return Picture("halving", "Trials that were stopped early", said, figure)


def _trial_path(run: Run, metric: str) -> curves.TrialPath | None:
    record = run.record
    points: list[tuple[int, float]] = [
        (each["step"], each["score"] * scale(metric))
        for each in record.rungs or ()
        if each["score"] is not None
    ]
    if run.completed and (score := run.score(metric, run.config.train.select)) is not None:
        points.append((record.steps, score))
    return curves.TrialPath(points, run.completed) if points else None


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
    rates_alone = setting_grid.of_contest(contest).of_rates_alone
    if rates_alone and (drawn := by_rate(contest)) is not None:
        rates = Picture("learning_rates", "Scores by learning rate", rate_caption(contest), drawn)
        made.insert(1, rates)
    if (rungs := halving_picture(contest)) is not None:
        made.append(rungs)
    return made


def of_grid(own: Grid) -> list[Picture]:
    """The pictures of a grid; without one of the rates alone, which `pictures` has."""
    if own.of_rates_alone:
        return []
    scores = metric_label(own.contest.metric)
    drawn = setting_lines.draw(own, scores)
    found = [Picture("settings", "Scores by setting", setting_lines.caption(own), drawn)]
    if not setting_heat.unfit(own):
        heat = setting_heat.draw(own, scores)
        found.insert(0, Picture("heatmap", "Heat map of settings", setting_heat.CAPTION, heat))
    return found


def by_rate(contest: Contest) -> Figure | None:
    """Draw mean scores by learning rate, on the examples that settings were chosen on.

    If several settings share a rate, the best is drawn. The result is None without data.
    """
    curves = [
        Curve(method.label, points, method.chosen and method.chosen.rate)
        for method in contest.methods
        if (points := best_by_rate(method, contest.metric))
    ]
    if not curves:
        return None
    return draw_curves(
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
    known = max(counted, default=0) >= collect_runs.FEWEST_SCORES
    bar = "a bar is the 95% interval of the mean over seeds" if known else ""
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


def best_by_rate(method: Method, metric: str) -> list[tuple[float, float, float]]:
    """Each learning rate, its best mean score, and half of the 95% interval (NaN if undefined)."""
    best: dict[float, tuple[float, float]] = {}
    for setting in method.tried:
        scores = collect_runs.means_of_draws(by_number(setting.of(method.phase))).tolist()
        if not scores:
            continue
        mean, ends = statistics.fmean(scores), interval_of(scores)
        before = best.get(setting.rate)
        if before is None or sign(metric) * before[0] < sign(metric) * mean:
            best[setting.rate] = mean, (ends[1] - ends[0]) / 2 if ends else np.nan
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
    turn = sign(contest.metric)
    front = pareto([each.cost for each in points], [turn * each.score for each in points])
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
