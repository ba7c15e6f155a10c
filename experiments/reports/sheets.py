"""The tables of a report: of methods, of differences from a reference, of wins, and of gains."""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from experiments.analysis import (
    collect_runs,
    pairwise,
    parameters,
    recorded_runs,
    setting_grid,
    significance,
)
from experiments.analysis.choose_methods import RATE, Contest, Method, Setting
from experiments.analysis.gains import Gain, Gains
from experiments.analysis.rate_choice import Choice
from experiments.analysis.significance import FEWEST_TASKS, Estimate
from experiments.analysis.task_evidence import Evidence
from experiments.reports.tables.cells import DECIMALS, is_raw, score_text, spread_text
from lora_jax.messages import agree, count
from lora_jax.table import NONE, Table

UNNAMED = "processor not named"
CHOSEN_ON = {"held-out": "held-out", "scored": "scored", "nothing": NONE}
WIDEST_FIRST = ("both", "seeds", "examples")
VERDICTS = {"win": "better", "tie": "not told apart", "loss": "worse", "": "not measured"}
ALONE = "each p is of one comparison alone"


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of a method's scored runs: parameters (`experiments.analysis.parameters`), seconds,
    bytes.
    """

    parameters: tuple[int, ...]
    seconds: float
    memory: int


def costs(method: Method) -> Costs | None:
    """The parameters, the mean time and the largest memory of the completed runs, or None."""
    done = [run.record for run in method.runs if run.completed]
    if not done:
        return None
    return Costs(
        parameters.counts(done),
        statistics.fmean(record.seconds for record in done),
        max(record.peak_memory_bytes for record in done),
    )


def interval(method: Method) -> tuple[float, float] | None:
    """The 95% interval of a method's mean (`interval_of`)."""
    return interval_of(method.counted())


def interval_of(scores: Sequence[float]) -> tuple[float, float] | None:
    """The 95% interval of the mean over seeds, or draws that they share (Student's t), or None.

    It is None if there are fewer than three scores, or all are equal: that of two reaches nine
    standard deviations to each side, so it may go far beyond what a score can be.
    """
    if len(scores) < collect_runs.FEWEST_SCORES or equal(scores):
        return None
    found = collect_runs.summarise(scores, "mean", "ci95")
    half = found.spread or 0.0
    return found.centre - half, found.centre + half


def equal(scores: Sequence[float]) -> bool:
    """Whether there are several scores and all are equal up to rounding, so no spread is known."""
    values = np.array(scores)
    return len(values) > 1 and significance.constant(values, np.abs(values).max())


def machines(contest: Contest) -> dict[str, list[str]]:
    """The labels of the methods by the devices and JAX versions of their completed, scored runs."""
    found: dict[str, list[str]] = {}
    for method in contest.methods:
        for run in method.runs:
            device, versions = run.record.device, run.record.versions
            text = ", ".join(
                f"{key} {versions[key]}" for key in ("jax", "jaxlib") if versions.get(key)
            )
            kind = device.get("kind")
            if kind == "cpu":  # what JAX calls every processor
                kind = device.get("processor") or UNNAMED
            where = f"{device.get('count')} {device.get('platform')} ({kind})"
            labels = found.setdefault(f"{where}, {text}" if text else where, [])
            if run.completed and method.label not in labels:
                labels.append(method.label)
    return {where: labels for where, labels in found.items() if labels}


def unlike(contest: Contest) -> str:
    """Why seconds and memory of a contest cannot be compared; empty if they can.

    Records did not always name the processor, so those without it may be of any machine.
    """
    if len(where := machines(contest)) > 1:
        return "different machines or versions of JAX"
    return "machines that the records do not name" if any(UNNAMED in each for each in where) else ""


def full_title(contest: Contest) -> str:
    """The title of a contest, with its metric and the examples that it is scored on."""
    where = "held-out training examples" if contest.held_out else "development set"
    return f"{contest.title}, {recorded_runs.named(contest.metric)} on the {where}"


def methods_sheet(contest: Contest, choices: Mapping[str, Choice] = MappingProxyType({})) -> Table:
    """A table of the methods of a contest.

    Args:
      choices: how their settings were chosen, by method (`rate_choice.of_contest`).
    """
    own_keys = setting_grid.of_contest(contest).varied
    own_keys = {RATE: setting_grid.short_names([RATE])[RATE], **own_keys}
    heads = (
        "method",
        "mean ± sd",
        "95% interval",
        "runs",
        parameters.HEADING,
        *own_keys.values(),
        "chosen on",
        "settings tried",
        "not completed",
        "seconds",
        "peak memory",
    )
    rows = [_method_row(method, contest.metric, list(own_keys)) for method in contest.methods]
    after, own = (
        heads.index("chosen on") + 1,
        [choices.get(e.key, Choice()) for e in contest.methods],
    )
    columns = {
        "chosen in": [NONE if e.chosen_in is None else f"{e.chosen_in:.0%}" for e in own],
        "lead": [
            NONE if e.lead is None else spread_text(e.lead, contest.metric, DECIMALS) for e in own
        ],
    }
    for head, texts in columns.items():  # only where something is known
        if set(texts) != {NONE}:
            heads = (*heads[:after], head, *heads[after:])
            rows = [[*r[:after], text, *r[after:]] for r, text in zip(rows, texts, strict=True)]
    return Table(heads, rows, full_title(contest))


def _method_row(method: Method, metric: str, keys: Sequence[str]) -> list[str]:
    settings, runs = method.budget
    values = {} if method.chosen is None else method.chosen.values
    chosen = [setting_grid.text(setting_grid.value_of(values, key), NONE) for key in keys]
    chosen[0] += f" ({method.edge})" if method.edge else ""
    scores = method.counted()
    found = collect_runs.summarise(scores, "mean", "sd") if scores else None
    lacks = "no number" if method.last_scores else "not run"
    score = lacks if found is None else score_text(found.centre, metric, DECIMALS)
    if found is not None and found.spread is not None:
        score += f" ± {spread_text(found.spread, metric, DECIMALS)}"
    if found is not None and method.last_scores:
        score += f" ({of_diverged(method)})"
    spent, ends = costs(method), interval(method)
    return [
        method.label,
        score,
        f"[{', '.join(score_text(end, metric, DECIMALS) for end in ends)}]" if ends else NONE,
        str(len(method.scores())),
        (spent and parameters.text(spent.parameters)) or NONE,
        *chosen,
        CHOSEN_ON[method.chosen_on],
        f"{settings} ({count(runs, 'run')})",
        not_completed(method.settings) or "0",
        NONE if spent is None else f"{spent.seconds:.0f}",
        NONE if spent is None else f"{spent.memory / 2**30:.2f} GiB",
    ]


def of_diverged(method: Method) -> str:
    """How the scored runs that diverged count in the method's mean, as text; empty without any."""
    every = method.last_scores.values()
    lost = sum(score is None for score in every)
    if lost:
        return f"{lost} diverged without a score"
    its = agree(len(every), "its last score", "their last scores")
    return f"{len(every)} diverged, with {its}" if every else ""


def not_completed(settings: Iterable[Setting]) -> str:
    """The number of runs that did not complete or left no record, by status, as text."""
    own = list(settings)
    counts = Counter(collect_runs.statuses(run for setting in own for run in setting.runs))
    counts.update(each.status for setting in own for each in setting.unfinished)
    return ", ".join(f"{count} {how}" for how, count in counts.items())


def reference_sheet(
    contest: Contest, reference: Method, family: Sequence[pairwise.Pair], judged: bool = True
) -> Table:
    """A table of the differences between the methods of a contest and the reference.

    Args:
      family: all pairs of the report; in pairs with the reference, it is the second method.
      judged: whether to give their verdicts.
    """
    tests = [head for kind in WIDEST_FIRST for head in (f"over {kind}", f"p, {kind}")]
    of_family = ["verdict (all pairs)", "p (Holm, all pairs)"] * judged
    heads = ["method", *of_family, *tests, "common seeds"]
    adjusted, verdicts = pairwise.adjusted(family), pairwise.verdicts(family)
    rows, raw = [], is_raw(contest.metric)
    for pair, holm, verdict in zip(family, adjusted, verdicts, strict=True):
        if pair.contest is contest and pair.second is reference:
            said = f"{VERDICTS[verdict]} {pairwise.MARKS.get(pair.decided_by, '')}".strip()
            row = [pair.first.label, *[said, p_text(holm)] * judged]
            for kind in WIDEST_FIRST:
                test = pair.tests[kind]
                known = test and [difference_text(test, raw), p_text(test.p)]
                row += known or [_untested(pair, kind), NONE]
            rows.append([*row, str(pair.common)])
    unit = recorded_runs.unit(contest.metric)
    unit += " (lower is better)" * (recorded_runs.sign(contest.metric) < 0)
    title = f"{contest.title}: difference from {reference.label}, {unit}"
    title += f", {ALONE}" * (not judged)
    return Table(heads, rows, title)


def difference_text(test: Estimate, raw: bool) -> str:
    """A difference, and its interval if there is one: `-0.33 [-0.58, -0.08]`.

    Args:
      raw: whether it is in no points, so that a few digits matter, wherever they are.
    """
    form = "+.3g" if raw else f"+z.{DECIMALS}f"
    text = f"{test.mean:{form}}"
    if test.low is not None and test.high is not None:
        text += f" [{test.low:{form}}, {test.high:{form}}]"
    return text


def _untested(pair: pairwise.Pair, kind: str) -> str:
    if pair.common == 0:
        return "no common seed"
    return "one seed" if pair.common == 1 and kind != "examples" else "not measured"


def p_text(p: float | None) -> str:
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def wins_sheets(family: Sequence[pairwise.Pair]) -> list[Table]:
    """Tables of how often the method of a row wins, ties and loses against that of a column.

    There is a table for each study, since rows of two studies may share a name by chance.
    """
    verdicts = list(zip(family, pairwise.verdicts(family), strict=True))
    tables = dict.fromkeys(pair.contest.table for pair in family)
    return [
        _wins_sheet(table, [e for e in verdicts if e[0].contest.table == table]) for table in tables
    ]


def _wins_sheet(table: str, verdicts: Sequence[tuple[pairwise.Pair, str]]) -> Table:
    counts: dict[str, dict[str, Counter[str]]] = {}
    contests = {(pair.contest.model, pair.contest.task): pair.contest for pair, _ in verdicts}
    labels = {m.key: m.label for contest in contests.values() for m in contest.methods}
    turned = {"win": "loss", "loss": "win"}
    for pair, verdict in verdicts:
        for one, other, own in (
            (pair.first, pair.second, verdict),
            (pair.second, pair.first, turned.get(verdict, verdict)),
        ):
            told = counts.setdefault(one.key, {}).setdefault(other.key, Counter())
            told[own] += 1
            if own:
                told[pairwise.MARKS.get(pair.decided_by, "")] += 1

    def text(told: Counter[str]) -> str:
        three = [told["win"], told["tie"], told["loss"]]
        marked = [f"{told[mark]}{mark}" for mark in pairwise.MARKS.values() if told[mark]]
        less = f" ({', '.join(marked)})" if marked else ""
        return "-".join(map(str, three)) + less if sum(three) else "not measured"

    rows = []
    for key, label in labels.items():
        own = counts.get(key, {})
        cells = [NONE if o == key else text(own.get(o, Counter())) for o in labels]
        rows.append([label, text(sum(own.values(), Counter())), *cells])
    size = count(len(contests), "contest")
    name = f"{table}, wins-ties-losses of rows against columns (a tie: not told apart)"
    title = f"{name}, in the family of all pairs, {size}"
    return Table(["method", "all", *labels.values()], rows, title)


GAINS_NOTE = (
    "A mean gain is over all tasks, with the same weight; where a method lacks some, the row says "
    "so. p (Holm) is that of no difference, in the family of all methods, or of all pairs where "
    "these are compared; the p of equivalence is that of two one-sided tests against the margin; "
    "if it is small, a method that is better or worse is so by less than the margin. The upper "
    "bound is one-sided. Detectable is the smallest difference that the test would find with a "
    "power of 80%. Such tasks: the mean of all tasks of which these are a sample, by a t-test of "
    "the tasks' gains; where these tasks alone have the wider interval, it is that; fewer than "
    f"{FEWEST_TASKS} tasks are not a sample. All these "
    "numbers are of the rates that were chosen, whose choice has noise of its own. They generalise "
    "over seeds (other orders and first weights, and other training examples where seeds draw "
    "them) and over the examples of the development sets. Seeds alone: the interval and the "
    "verdict of the same tests over new seeds on these very examples, which an earlier version "
    "had as its verdict; without that column, runs have no predictions, and all numbers are over "
    "seeds alone. With 10 seeds of a task, false claims can be 1.25 "
    "times as frequent as the level says, and less so with more."
)


def of_tasks(own: int, tasks: int) -> str:
    """What follows the name of a method whose mean is not over all tasks; nothing otherwise."""
    return f" ({own} of {tasks} tasks)" if own < tasks else ""


Columns = Mapping[str, Mapping[str, str]]
"""Further columns by their heads: the cell of each method, by its key."""


def gain_sheet(
    gains: Sequence[Gain],
    title: str,
    level: float,
    tasks: int,
    more: Columns = MappingProxyType({}),
) -> Table:
    """A row for each method, the largest gain first; methods that lack a task come last.

    Args:
      tasks: how many the study has.
      more: columns that follow.
    """
    ordered = sorted(gains, key=lambda e: (len(e.by_task) < tasks, -e.over_tasks.mean))
    alone = any(each.seeds_alone for each in gains)
    confidence = f"{100 * (1 - level):g}%"
    heads = (
        "method",
        "verdict",
        "mean gain",
        f"{confidence} interval",
        *[f"{confidence} interval, seeds alone", "verdict, seeds alone"] * alone,
        "p (Holm)",
        "p of equivalence",
        f"{confidence} upper bound",
        "detectable",
        *["such tasks"] * (tasks >= FEWEST_TASKS),
        "seeds",
        *more,
    )
    rows = [
        [*_row(each, tasks, alone), *(own.get(each.key, NONE) for own in more.values())]
        for each in ordered
    ]
    return Table(heads, rows, title)


def pair_sheet(pairs: Sequence[Gains], title: str, level: float, tasks: int) -> Table:
    """The same for pairs of methods: a row for what the first gains over the second.

    Args:
      pairs: the gains over each method of those after it.
    """
    named = [
        dataclasses.replace(gain, label=f"{gain.label} over {each.reference}")
        for each in pairs
        for gain in each.methods
    ]
    sheet = gain_sheet(named, title, level, tasks)
    return dataclasses.replace(sheet, heads=("pair", *sheet.heads[1:]))


def _row(gain: Gain, tasks: int, alone: bool) -> list[str]:
    whole, seeds = gain.over_tasks, gain.seeds_alone
    return [
        gain.label + of_tasks(len(gain.by_task), tasks),
        gain.verdict,
        _signed(whole.mean),
        _interval(whole),
        *([_interval(seeds.over_tasks), seeds.verdict] if seeds else [NONE, NONE] * alone),
        p_text(gain.adjusted),
        p_text(gain.equivalent),
        _signed(gain.upper),
        NONE if gain.detectable is None else f"{gain.detectable:.{DECIMALS}f}",
        *[NONE if gain.new_task is None else estimate_text(gain.new_task)]
        * (tasks >= FEWEST_TASKS),
        str(whole.n),
    ]


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+z.{DECIMALS}f}"


def _interval(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return NONE
    return f"[{_signed(found.low)}, {_signed(found.high)}]"


def evidence_sheet(found: Sequence[Evidence], margin: float, unit: str) -> Table:
    """What each task can show: a row for each task, with the scores that need no adaptation."""
    names = list(dict.fromkeys(each.name for task in found for each in task.floors))
    best = f"gain of {found[0].reference} over the best of these, {unit}"
    heads = ("task", *names, found[0].reference, best, "margin", "what it can show")
    rows = []
    for task in found:
        scores = {each.name: f"{each.score:.1f}" for each in task.floors}
        gain = NONE if task.best is None else estimate_text(task.best.gain)
        rows.append(
            [
                task.title,
                *(scores.get(name, NONE) for name in names),
                f"{task.score:.1f}",
                gain,
                f"{margin:g}",
                task.shows,
            ]
        )
    return Table(heads, rows, "What each task can show")


def estimate_text(found: Estimate) -> str:
    """A mean and its interval: `-0.33 [-0.58, -0.08]`."""
    return f"{_signed(found.mean)} {_interval(found)}"
