"""Draw many runs: scores by parameters, training curves, scores by learning rate or examples."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from configs import common_tasks
from experiments.analysis import (
    collect_runs,
    parameters as counted,
    scored_examples,
    setting_grid,
)
from experiments.analysis.choose_methods import RATE
from experiments.analysis.collect_runs import (
    Summary,
    collect,
    one_of_each,
    select,
    summarise,
)
from experiments.analysis.labels import UNTITLED, in_order, method, natural
from experiments.analysis.published import MODEL_TITLES
from experiments.analysis.recorded_runs import Run, find, named, scale
from experiments.reports.figures import setting_heat, setting_lines
from experiments.reports.figures.style import NORMAL, styles, width, write_below_one_another
from experiments.reports.tables import config_tables
from experiments.runs.rank_map import rank_map
from experiments.studies import adherence
from lora_jax.messages import require_known

MOST_LINES = 40
"""More lines or points of one picture cannot be told apart."""
LEGEND = 14
"""The most names in a column of a legend."""
AXES, HANDLE, POINTS = 4.9, 0.6, 72.0
"""The inches of a panel without its legend, those of a line in it, and points in an inch."""
SPREADS = {"sd": "standard deviation", "ci95": "half of a 95% interval, for three runs or more"}


@dataclasses.dataclass(frozen=True)
class Panel:
    """The content of one pair of axes: runs of one model and task, scored on the same examples.

    `table` is the `TABLE` of their config (`configs.common_tasks.table`).
    """

    title: str
    metric: str
    runs: tuple[Run, ...]
    table: Mapping[str, Any]

    def rows(
        self,
        beside: Sequence[str] = (),
        key_of: Callable[[Run], str] = collect_runs.method_key,
    ) -> dict[str, list[Run]]:
        """The completed runs by name: of a row or method, and of the settings that differ in it.

        Rows come in the table's order, and then all others.

        Args:
          beside: settings that are not in the name, such as that of the horizontal axis.
          key_of: the row of a run, or without a study its method.
        """
        by_key: dict[str, list[Run]] = {}
        for run in self.runs:
            if run.completed:
                by_key.setdefault(key_of(run), []).append(run)
        found: dict[str, list[Run]] = {}
        for key in dict.fromkeys([*self.table["rows"], *in_order(by_key)]):
            own = by_key.get(key, [])
            groups: dict[tuple[str | None, ...], list[Mapping[str, str]]] = {}
            for run in own:
                place = tuple(run.settings.get(name) for name in beside)
                groups.setdefault(place, []).append(run.settings)
            names = setting_grid.names_of_differing(list(groups.values()), between=False)
            label = self.table["rows"].get(key) or method(key)
            for values, run in setting_grid.by_values(own, names):
                told = [f"{names[k]} {setting_grid.text(value)}" for k, value in values.items()]
                found.setdefault(", ".join([label, *told]), []).append(run)
        return found

    def score(self, runs: Sequence[Run]) -> Summary | None:
        """The summary of some runs, computed as in the table; None without scores."""
        scores = {run.number: run.score(self.metric, self.table["choose"]) for run in runs}
        known = {number: score for number, score in scores.items() if score is not None}
        counted = collect_runs.means_of_draws(known).tolist()
        if not counted:
            return None
        found = summarise(counted, self.table["report"], self.table["spread"])
        known_spread = self.table["spread"] == "sd" or found.n >= collect_runs.FEWEST_SCORES
        return found if known_spread else dataclasses.replace(found, spread=None)

    def protocol(self) -> str:
        """A description of `score` in words."""
        report, choose = self.table["report"], self.table["choose"]
        return f"{report} of runs at their {choose} evaluation ± {SPREADS[self.table['spread']]}"


def metric_label(metric: str) -> str:
    """The label of an axis with a metric."""
    return named(metric).capitalize() + (" (%)" if scale(metric) != 1 else "")


def panels(runs: Sequence[Run], task: Callable[[Run], str] | None = None) -> list[Panel]:
    """Group runs into panels by table, model, task and the examples they were scored on.

    Args:
      task: the name of a run's task; by default tasks are columns of the table.

    Raises:
      ValueError: no run has completed.
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        table, model, column = collect_runs.contest_key(run)
        held = "held-out" * run.held_out
        key = table, model, task(run) if task else column, held
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
        raise ValueError("no run has completed: nothing to draw")
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
    figure = Figure(layout="constrained")
    figure.supxlabel(said, fontsize="small")
    grid, room = figure.subplots(lines, columns, squeeze=False), 0.0
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
            labels = axes.get_legend_handles_labels()[1]
            count, legends = len(labels), -(-len(labels) // LEGEND)
            if count > MOST_LINES:
                raise ValueError(
                    f"{panel.title}: {count} settings are too many to tell apart ({MOST_LINES} at "
                    "most): --kind=heatmap or --kind=settings draws their scores"
                )
            if offset == 0 and count:
                wide = max(width(label, NORMAL) for label in labels) / POINTS
                room = max(room, legends * (wide + HANDLE))
                axes.legend(
                    loc="center left",
                    bbox_to_anchor=(1.01, 0.5),
                    fontsize="small",
                    ncols=legends,
                )
    figure.set_size_inches((AXES + room) * columns, 3.6 * lines + 0.2)
    return figure


APART = 1.04
"""The factor between the places of two methods at one number of examples."""


def parameters(runs: Sequence[Run]) -> Figure:
    """Draw scores, as in the tables, against parameters (`experiments.analysis.parameters`).

    A method without adapters (a trained head alone) is a dashed line.
    """

    def draw(axes: Axes, panel: Panel) -> None:
        for (row, own), (marker, colour, _) in zip(panel.rows().items(), styles(), strict=False):
            found = panel.score(one_of_each(own))
            counts = counted.counts(run.record for run in own)
            if found is None or not counts:
                continue
            count = max(counts)
            if count == 0:
                axes.axhline(found.centre, color=colour, linestyle="--", label=row)
            else:
                axes.errorbar(
                    [count],
                    [found.centre],
                    yerr=found.spread,
                    fmt=marker,
                    color=colour,
                    capsize=3,
                    label=row,
                )
        axes.set_xscale("log")
        axes.set_xlabel(counted.HEADING)
        axes.set_ylabel(metric_label(panel.metric))

    return scored(panels(runs), draw)


def training(runs: Sequence[Run]) -> Figure:
    """Draw losses by step, and scores by step below: the mean over a row's runs, and their range.

    The steps are those that all runs of a row have reported.
    """
    made = panels(runs)
    if not any(run.metrics() for run in runs):
        raise ValueError("no run has a metrics.jsonl: there are no curves to draw")

    drawings = [
        lambda axes, panel: _curves(axes, panel, "loss", 1.0, "Training loss"),
        lambda axes, panel: _curves(
            axes, panel, panel.metric, scale(panel.metric), metric_label(panel.metric)
        ),
    ]
    return figure_of(made, drawings, "means of runs, and their range")


def _curves(axes: Axes, panel: Panel, name: str, times: float, label: str) -> None:
    rows = panel.rows()
    for (row, own), (marker, colour, line) in zip(rows.items(), styles(), strict=False):
        curves = [curve for run in own if (curve := _curve(run, name))]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        if not steps:
            continue
        values = times * np.array([[curve[step] for step in steps] for curve in curves])
        few = {"marker": marker, "markersize": 5} if len(steps) < 10 else {}
        axes.plot(steps, values.mean(0), linestyle=line, color=colour, label=row, **few)
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
    axes.set_xlabel("step")
    axes.set_ylabel(label)


def learning_rate(runs: Sequence[Run]) -> Figure:
    """Draw scores, as in the tables, by learning rate, with a line for each method and rank, ...

    If a row's name begins with the rate (`rate_1e-4_ratio_4`), the rest of the name is the method.
    """

    def rate(run: Run) -> float:
        return run.config.optimizer.learning_rate

    def method_of(run: Run) -> str:
        return re.sub(r"^rate_[^_]+_", "", collect_runs.method_key(run))

    def draw(axes: Axes, panel: Panel) -> None:
        rows = panel.rows((RATE,), method_of)
        for (row, own), style in zip(rows.items(), styles(), strict=False):
            points = []
            for x in sorted({rate(run) for run in own}):
                found = panel.score(one_of_each([run for run in own if rate(run) == x]))
                if found is not None:
                    points.append((x, found.centre, found.spread or 0.0))
            if points:
                _line(axes, points, style, row)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel(metric_label(panel.metric))

    return scored(panels(runs), draw)


def examples(runs: Sequence[Run]) -> Figure:
    """Draw scores, as in the tables, by the number of training examples, with a line a method.

    A number of 0 in a config, which means all, is not drawn.
    """

    def task(run: Run) -> str:
        name = run.config.data.name.rpartition("/")[2]
        return common_tasks.TITLES.get(name, name)

    def draw(axes: Axes, panel: Panel) -> None:
        rows = panel.rows(("data.train",))
        counts = sorted({run.config.data.train for run in panel.runs})
        places = APART ** (np.arange(len(rows)) - (len(rows) - 1) / 2)
        for (row, own), place, style in zip(rows.items(), places, styles(), strict=False):
            points = []
            for count in counts:
                same = [run for run in own if run.config.data.train == count]
                found = panel.score(one_of_each(same))
                if found is not None:  # a little apart, so that bars do not hide one another
                    points.append((count * place, found.centre, found.spread or 0.0))
            if points:
                _line(axes, points, style, row)
        axes.set_xscale("log")
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("training examples")
        axes.set_ylabel(metric_label(panel.metric))

    limited = [run for run in runs if run.config.data.train]
    if not limited:
        raise ValueError(
            "no run has a number of training examples, config.data.train, so there is nothing for "
            "--kind=examples; --kind=settings draws the scores by what varies"
        )
    return scored(panels(limited, task), draw)


def _line(
    axes: Axes, points: Sequence[tuple[float, float, float]], style: Sequence[Any], label: str
) -> None:
    """A line through points (x, y, half of an interval), each with its bar."""
    marker, colour, dashes = style
    x, y, bars = zip(*points, strict=True)
    axes.errorbar(x, y, bars, fmt=marker, linestyle=dashes, color=colour, capsize=3, label=label)


FIGURES: Mapping[str, Callable[..., Figure]] = {
    "parameters": parameters,
    "training": training,
    "learning_rate": learning_rate,
    "examples": examples,
}
SETTINGS: Mapping[str, ModuleType] = {"settings": setting_lines, "heatmap": setting_heat}
"""What draws all settings of a grid."""


def draw(
    results: Path,
    kind: str,
    out: Path,
    table: str | None = None,
    size: str = "full",
    say: Callable[[str], object] = lambda note: None,
) -> list[Run]:
    """Draw the runs below a folder into a PNG, and return the runs that are drawn.

    Args:
      say: is called with each note on runs that were left out, such as pilots of a study.

    Raises:
      ValueError, FileNotFoundError: no such folder, nothing to draw, records that cannot share a
        table, runs of two registrations, or a record that its stored predictions contradict.
    """
    found = find(results)
    if kind == "ranks":
        return [_ranks(found, out)]
    if kind in SETTINGS:
        return _settings(results, kind, out, table, size, say)
    # as in a report, runs of no study are left out where others are of one
    runs = [run for run in found if run.study.table] or found
    if table is not None:
        known = sorted({collect_runs.name_of(run) for run in runs})
        require_known(table, known, f"--table={table}: no runs of it in {results}")
    own = [run for run in runs if table in (None, collect_runs.name_of(run))]
    chosen: list[Run] = []
    notes: list[str] = []
    for part in _parts(own, kind):
        kept, left = select(part, None, size)
        kept, departed = adherence.as_registered(results, kept, own)
        tables = sorted({run.study.table for run in kept} - {""})
        if tables and kind != "learning_rate":  # whose settings differ, also on held-out examples
            kept = [run for each in tables for run in collect(kept, each, size, True).runs]
        chosen += kept
        notes += [*left, *departed]
    if not any(run.completed for run in chosen):
        raise ValueError(collect_runs.none_completed(results, own, size))
    for run in chosen:
        scored_examples.require_agreement(run)
    figure = FIGURES[kind](chosen)
    if size != "full":
        figure.supxlabel(f"{size.upper()} RUNS; {figure.get_supxlabel()}", fontsize="small")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    for note in dict.fromkeys(notes):
        say(note)
    return chosen


def _settings(
    results: Path, kind: str, out: Path, table: str | None, size: str, say: Callable[[str], object]
) -> list[Run]:
    """Draw the settings of each model and task, one picture below the other."""
    module = SETTINGS[kind]
    made, notes = config_tables.contests_of(results, size, table)
    grids = [setting_grid.of_contest(each) for each in made]
    reasons = {id(each): module.unfit(each) for each in grids}
    drawn = [each for each in grids if not reasons[id(each)]]
    if not drawn:
        other = "settings" if grids[0].varied else "parameters"
        raise ValueError(
            f"--kind={kind}: {grids[0].contest.title}: {reasons[id(grids[0])]}; --kind={other} "
            "draws these runs"
        )
    notes += [f"not drawn: {g.contest.title}: {why}" for g in grids if (why := reasons[id(g)])]
    runs = [run for each in drawn for row in each.rows for run in row.setting.of(row.method.phase)]
    for run in runs:
        scored_examples.require_agreement(run)
    figures = [module.draw(each, metric_label(each.contest.metric)) for each in drawn]
    if size != "full":
        figures[0].suptitle(f"{size.upper()} RUNS\n{figures[0].get_suptitle()}", fontsize=NORMAL)
    write_below_one_another(figures, out)
    captions = [
        setting_heat.CAPTION if kind == "heatmap" else setting_lines.caption(each) for each in drawn
    ]
    for note in dict.fromkeys([*captions, *notes]):
        say(note)
    return runs


def _parts(runs: Sequence[Run], kind: str) -> list[list[Run]]:
    """Runs that are selected together: each number of examples may be a study of its own."""
    digests = sorted({run.study.registration for run in runs} - {""}) if kind == "examples" else []
    parts = [[run for run in runs if run.study.registration == each] for each in digests]
    tables = {run.study.table for part in parts for run in part}
    others = [run for run in runs if run.study.table not in tables]
    return [*parts, *([others] if others else [])]


def _ranks(found: list[Run], out: Path) -> Run:
    chosen = [run for run in found if run.record.ranks]
    if len(chosen) != 1:
        folders = ", ".join(str(run.folder) for run in chosen[:3]) or "none"
        raise ValueError(
            f"--kind=ranks draws one run: name the folder of a run that chose ranks ({folders})"
        )
    ranks = chosen[0].record.ranks or {}
    out.parent.mkdir(parents=True, exist_ok=True)
    rank_map({path: np.asarray(each) for path, each in ranks.items()}, out)
    return chosen[0]


def _curve(run: Run, name: str) -> dict[int, float]:
    """The values that a run logged under a name, by step; empty if there is no log."""
    return {row["step"]: row[name] for row in run.metrics() if name in row}
