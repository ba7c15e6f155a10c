"""A picture of a report with its words, and the forest plots of its findings."""

import dataclasses
from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.figures import forest
from experiments.figures.style import NORMAL
from experiments.reports.findings import Finding, Findings

FAR = " An arrow is a difference beyond the axis, whose number is at the right."
FEWER = " A method that lacks tasks comes last; its mean is over those that its name counts."
MANY = " Verdicts take all comparisons into account, so an undecided method's bar may miss zero."


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
    """The differences from the reference: over all tasks first, if that was tested, then by task.

    Figures of single tasks share one axis.
    """
    made = []
    bar = f"a bar is the {100 * (1 - found.level):g}% interval of that difference alone"
    gain = f"difference from {found.reference} ({found.unit})"
    band = "" if found.margin is None else f" The grey band is the margin, ±{found.margin:g}."
    whole = [each for each in found.methods if each.over_tasks is not None]
    if whole:
        tasks = len(found.tasks)
        lines = [_partial(_line(each, None), len(each.by_task), tasks) for each in whole]
        far = FAR * forest.beyond(lines, forest.shown(lines, found.margin))
        fewer = FEWER * any(line.behind for line in lines)
        said = (
            f"Mean difference over {tasks} tasks of the same weight, "
            f"n = {_seeds(found.seeds)}, {found.how}; {bar}.{fewer}{band}{far}{MANY}"
        )
        drawn = forest.forest(lines, title="Mean over tasks", axis=gain, margin=found.margin)
        made.append(Picture("gain_over_tasks", "Mean over tasks", said, drawn))
    by_task = {
        task: [each for each in found.methods if task in each.by_task] for task in found.tasks
    }
    drawings = {task: [_line(each, task) for each in own] for task, own in by_task.items()}
    limits = forest.shown([line for lines in drawings.values() for line in lines], found.margin)
    for task, lines in drawings.items():
        seeds = [each.by_task[task].n for each in by_task[task]]
        far = FAR * forest.beyond(lines, limits)
        many = MANY * any(each.verdict_of_task.get(task) for each in by_task[task])
        said = f"n = {_seeds(seeds)}, {found.how}; {bar}.{band}{far}{many}"
        drawn = forest.forest(lines, title=task, axis=gain, margin=found.margin, limits=limits)
        made.append(Picture(f"gain_{task}", task, said, drawn))
    return made


def _line(found: Finding, task: str | None) -> forest.Line:
    estimate = found.over_tasks if task is None else found.by_task[task]
    assert estimate is not None
    verdict = found.verdict if task is None else found.verdict_of_task.get(task, "")
    return forest.Line(found.label, estimate.mean, estimate.low, estimate.high, verdict)


def _partial(line: forest.Line, own: int, tasks: int) -> forest.Line:
    """The line of a mean over tasks, with the number of these behind its label if it lacks some."""
    if own == tasks:
        return line
    return dataclasses.replace(line, behind=f" ({own} of {tasks} tasks)")


def _seeds(counts: Sequence[int]) -> str:
    fewest, most = min(counts), max(counts)
    return f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
