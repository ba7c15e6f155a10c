"""A picture of a report with its words, and the forest plots of its findings."""

import dataclasses
from collections.abc import Iterator, Sequence

from matplotlib.figure import Figure

from experiments.figures import forest
from experiments.figures.style import NORMAL
from experiments.reports.findings import Finding, Findings
from experiments.reports.gain_sheet import of_tasks

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
    what = f"n = {_seeds(found.seeds)}"
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
    drawings = {task: [_line(each, task) for each in methods] for task, methods in own.items()}
    limits = forest.shown([line for lines in drawings.values() for line in lines], found.margin)
    for task, lines in drawings.items():
        what = f"n = {_seeds([each.by_task[task].n for each in own[task]])}"
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
    axis = f"difference from {found.reference} ({found.unit})"
    drawn = forest.forest(lines, title=title, axis=axis, margin=found.margin, limits=limits)
    bar = f"a bar is the {100 * (1 - found.level):g}% interval of that difference alone"
    band = "" if found.margin is None else f" The grey band is the margin, ±{found.margin:g}."
    far = FAR * forest.beyond(lines, limits)
    return Picture(stem, title, f"{what}, {found.how}; {bar}.{band}{far}{more}", drawn)


def _over_all(found: Findings, method: Finding, name: str) -> forest.Line:
    """The line of a mean over tasks, with the number of these behind its name if it lacks some."""
    line = dataclasses.replace(_line(method, None), label=name)
    tasks = found.planned_tasks or len(found.tasks)
    return dataclasses.replace(line, behind=of_tasks(len(method.by_task), tasks))


def _line(found: Finding, task: str | None) -> forest.Line:
    estimate = found.over_tasks if task is None else found.by_task[task]
    assert estimate is not None
    verdict = found.verdict if task is None else found.verdict_of_task.get(task, "")
    return forest.Line(found.label, estimate.mean, estimate.low, estimate.high, verdict)


def _seeds(counts: Sequence[int]) -> str:
    fewest, most = min(counts), max(counts)
    if most == 1:
        return "1 seed"
    return f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
