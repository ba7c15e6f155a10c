"""Axes for each model and task of many runs, with the runs' scores as in tables."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from configs import common_tasks
from experiments.analysis import collect_runs
from experiments.analysis.collect_runs import Summary, one_of_each, settings_of, summarise
from experiments.analysis.labels import UNTITLED, in_order, method, natural
from experiments.analysis.published import MODEL_TITLES
from experiments.analysis.recorded_runs import Run, scale
from experiments.tables import config_tables
from lora_jax.metrics.label_metrics import LOWER_IS_BETTER

LEGEND = 14
"""The most names in a column of a legend."""
SPREADS = {"sd": "standard deviation", "ci95": "half of a 95% interval"}


@dataclasses.dataclass(frozen=True)
class Panel:
    """The content of one pair of axes: runs of one model and task, scored on the same examples.

    `table` is the `TABLE` of their config (`configs.common_tasks.table`).
    """

    title: str
    metric: str
    runs: tuple[Run, ...]
    table: Mapping[str, Any]

    def rows(self, name: Callable[[Run], str]) -> dict[str, list[Run]]:
        """The completed runs by name: names of table rows in the table's order, then all others."""
        done = [run for run in self.runs if run.completed]
        found = in_order(name(run) for run in done)
        keys = [*(key for key in self.table["rows"] if key in found), *found]
        return {key: [run for run in done if name(run) == key] for key in dict.fromkeys(keys)}

    def name(self, row: str) -> str:
        """The label of a row in the table."""
        return self.table["rows"].get(row) or method(row)

    def score(self, runs: Sequence[Run]) -> Summary | None:
        """The summary of some runs, computed as in the table; None without scores."""
        scores = {run.number: run.score(self.metric, self.table["choose"]) for run in runs}
        known = {number: score for number, score in scores.items() if score is not None}
        counted = collect_runs.means_of_draws(known).tolist()
        return summarise(counted, self.table["report"], self.table["spread"]) if counted else None

    def best(self, runs: Sequence[Run]) -> Summary | None:
        """The summary of the runs of one setting, that with the best; None without scores."""
        settings: dict[tuple[tuple[str, str], ...], list[Run]] = {}
        for run in runs:
            settings.setdefault(tuple(settings_of(run.config).items()), []).append(run)
        scores = [self.score(one_of_each(own)) for own in settings.values()]
        better = min if self.metric in LOWER_IS_BETTER else max
        return better(filter(None, scores), key=lambda each: each.centre, default=None)

    def protocol(self) -> str:
        """A description of `score` in words."""
        report, choose = self.table["report"], self.table["choose"]
        return f"{report} of runs at their {choose} evaluation ± {SPREADS[self.table['spread']]}"


def metric_label(metric: str) -> str:
    """The label of an axis with a metric."""
    return metric.replace("_", " ").capitalize() + (" (%)" if scale(metric) != 1 else "")


def panels(runs: Sequence[Run], task: Callable[[Run], str] | None = None) -> list[Panel]:
    """Group runs into panels by table, model, task and the examples they were scored on.

    Args:
      task: the name of a run's task; by default tasks are columns of the table.

    Raises:
      ValueError: no run has completed.
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        model, _, column = run.place
        held = "held-out" * run.held_out
        key = run.study.table, model, task(run) if task else column, held
        groups.setdefault(key, []).append(run)
    made, known = [], config_tables.tables()
    titles = config_tables.titles(known)
    for (table, model, name, held), own in groups.items():
        metrics = {run.record.metric for run in own if run.completed}
        if metrics:
            title = name if task else titles.get(table, UNTITLED).column(name)
            title = f"{MODEL_TITLES.get(model, model)}, {title}"
            title += f", {held} training examples" if held else ""
            shown = known.get(table) or common_tasks.table(table)
            made.append(Panel(title, natural(metrics)[0], tuple(own), shown))
    if not made:
        raise ValueError("no run of a study has completed: nothing to draw")
    return made


def scored(made: Sequence[Panel], draw: Callable[[Axes, Panel], None]) -> Figure:
    """A figure of scores, with the protocol of its tables below."""
    return figure_of(made, [draw], "; ".join(dict.fromkeys(panel.protocol() for panel in made)))


def figure_of(
    made: Sequence[Panel], drawings: Sequence[Callable[[Axes, Panel], None]], said: str
) -> Figure:
    """A figure with axes for each panel and drawing, a legend beside each panel, `said` below."""
    columns = min(2, len(made))
    lines = -(-len(made) // columns) * len(drawings)
    names = max(len({run.place[1] for run in panel.runs}) for panel in made)
    width = 6.6 + 1.5 * ((names - 1) // LEGEND)  # room for a legend of several columns
    figure = Figure(figsize=(width * columns, 3.6 * lines + 0.2), layout="constrained")
    figure.supxlabel(said, fontsize="small")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for number, panel in enumerate(made):
        line, column = divmod(number, columns)
        for offset, draw in enumerate(drawings):
            axes = grid[line * len(drawings) + offset, column]
            axes.set_visible(True)
            if offset:  # drawings of one panel have the same steps
                axes.sharex(grid[line * len(drawings), column])
            draw(axes, panel)
            axes.grid(alpha=0.3)
            axes.margins(0.08)
            if offset == 0:
                axes.set_title(panel.title)
            if offset == 0 and (count := len(axes.get_legend_handles_labels()[0])):
                axes.legend(
                    loc="center left",
                    bbox_to_anchor=(1.01, 0.5),
                    fontsize="small",
                    ncols=-(-count // LEGEND),
                )
    return figure
