"""What a report says about each method beside its reference, however that was decided.

A registered study has gains over all its tasks (`experiments.analysis.gains`). Other runs have the
tests of pairs, one for each task.

`sentence` says it in a sentence, and `limits` what a reader of the verdicts must know.
"""

import dataclasses
import statistics
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from experiments.analysis import recorded_runs, significance
from experiments.analysis.choose_methods import Contest, Method
from experiments.analysis.gains import Gain, Gains
from experiments.analysis.labels import heading
from experiments.analysis.pairwise import Pair, verdicts
from experiments.analysis.parameters import MATCHED
from experiments.analysis.significance import Estimate
from experiments.analysis.task_evidence import Evidence
from experiments.reports.sheets import Columns, difference_text, evidence_sheet, gain_sheet
from experiments.reports.tables.cells import is_raw
from lora_jax.messages import agree, count, joined, span
from lora_jax.table import Table

WIDEST = "paired, by the widest test of each pair (see the notes)"
OTHER_VERDICTS = "These are not the verdicts of the study that was registered. "
OF_PAIR = {"win": "better", "loss": "worse", "tie": "undecided", "": ""}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A method's differences from the reference, by task, and over them all where that was tested.

    The verdicts are `better`, `worse`, `equivalent`, `undecided`, or empty if nothing was tested.
    """

    label: str
    by_task: Mapping[str, Estimate]
    verdict_of_task: Mapping[str, str]
    over_tasks: Estimate | None
    verdict: str
    gain: Gain | None = None
    """What it is of, in a registered study."""
    control: bool = False
    """Whether it checks the study itself, and is not counted as a method."""
    parameters: float | None = None
    """How many times as many parameters it trains as the reference, if both are known."""

    @property
    def mean(self) -> float:
        """What methods with the same tasks are sorted by."""
        if self.over_tasks is not None:
            return self.over_tasks.mean
        return statistics.fmean(each.mean for each in self.by_task.values())


@dataclasses.dataclass(frozen=True)
class Question:
    """Methods that differ in one setting: what each is called, and what was found of it.

    Nothing (None) was found of the reference, which others are compared with.
    """

    title: str
    answers: tuple[tuple[str, Finding | None], ...]


@dataclasses.dataclass(frozen=True)
class Findings:
    """Those of one study, best first, and last those that lack a task."""

    title: str
    reference: str
    """The label of the method that others are compared with."""
    unit: str
    """Of the differences."""
    margin: float | None
    """Of equivalence, in that unit; None if none was set before the runs."""
    seeds: tuple[int, int]
    """The fewest and the most seeds that a comparison has."""
    how: str
    """What the intervals are of, in words."""
    methods: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    """What a reader must know beside the numbers."""
    sheet: Table | None = None
    """The numbers over all tasks."""
    level: float = significance.LEVEL
    """Intervals have a confidence of 1 - level."""
    lower: bool = False
    """Whether lower scores are better."""
    questions: tuple[Question, ...] = ()
    """Those that the study's table asks."""
    reference_key: str = ""
    """The method that others are compared with, as contests name it. Of registered studies alone,
    as are the two below."""
    model: str = ""
    metrics: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The metric of each task, by its name in contests."""
    planned_tasks: int = 0
    """How many tasks the study has; 0 if it was not registered."""
    absent: tuple[str, ...] = ()
    """The registered methods that have no number on any task."""
    caveat: str = ""
    """What stands before the verdict; empty if all planned runs are there and as registered."""
    pairs: tuple[Gains, ...] = ()
    """The gains over each method of those after it; empty where pairs were not compared."""
    pairs_registered: bool = False
    """Whether the verdicts of the study are those of all pairs."""
    evidence: tuple[Evidence, ...] = ()
    """What each task can show; empty if the study was not registered."""
    idle: tuple[str, ...] = ()
    """Adapters that did nothing on a task, a sentence for each task."""
    without_blind: "Findings | None" = None
    """The same over the tasks that can show something, if others cannot."""

    @property
    def sheets(self) -> list[Table]:
        """Its tables over all tasks."""
        gained = [self.sheet] if self.sheet is not None else []
        if not self.evidence:
            return gained
        return [*gained, evidence_sheet(self.evidence, self.margin or 0.0, self.unit)]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for each in self.methods for task in each.by_task))


def of_gains(
    gains: Sequence[Gain],
    *,
    title: str,
    reference: str,
    margin: float | None,
    level: float = significance.LEVEL,
    unit: str = "points",
    notes: Sequence[str] = (),
    headings: Mapping[str, str] = MappingProxyType({}),
    tasks: int = 0,
    controls: Collection[str] = (),
    shares: Mapping[str, float] = MappingProxyType({}),
    columns: Columns = MappingProxyType({}),
) -> Findings:
    """The findings of a study whose methods were compared over all its tasks.

    Args:
      title: the name of the study's table.
      reference: the label of the method that the gains are over.
      margin: of equivalence, in the unit.
      level: of the intervals and of both families of tests.
      notes: on what was left out.
      headings: of tasks, by their names; others have the usual ones.
      tasks: how many the study has; by default, as many as the method with most.
      controls: the keys of the rows that check the study itself.
      shares: how many times as many parameters methods train as the reference, by their keys.
      columns: more of them for the table.
    """
    found = [
        Finding(
            gain.label,
            {headings.get(task) or heading(task): each for task, each in gain.by_task.items()},
            {},
            gain.over_tasks,
            gain.verdict,
            gain,
            gain.key in controls,
            shares.get(gain.key),
        )
        for gain in gains
    ]
    named = f"Gain over {reference}, all tasks together, {unit}"
    planned = max([tasks, *(len(gain.by_task) for gain in gains)])
    sheet = gain_sheet(gains, named, level, planned, columns) if gains else None
    return Findings(
        title=title,
        reference=reference,
        unit=unit,
        margin=margin,
        seeds=_ends([gain.over_tasks.n for gain in gains]),
        how=f"paired by seed{' and example' * any(gain.seeds_alone is not None for gain in gains)}",
        methods=_best_first(found),
        notes=tuple(notes),
        sheet=sheet,
        level=level,
        planned_tasks=planned,
    )


def questions(
    asked: Mapping[str, Mapping[str, str]], found: Findings, reference: str
) -> tuple[Question, ...]:
    """The questions of a study's table to which something was found; rows without it are left out.

    Args:
      asked: the rows of each, in their order, and their names there.
      reference: the row that others are compared with.
    """
    by_row = {each.gain.key: each for each in found.methods if each.gain is not None}
    known: dict[str, Finding | None] = {**by_row, reference: None}
    made = [
        Question(title, tuple((name, known[row]) for row, name in rows.items() if row in known))
        for title, rows in asked.items()
    ]
    return tuple(each for each in made if any(found for _, found in each.answers))


def of_pairs(
    contests: Sequence[Contest], references: Sequence[Method | None], family: Sequence[Pair]
) -> list[Findings]:
    """The findings of each study from its pairs with the reference, apart for each unit.

    Args:
      references: that of each contest.
      family: all pairs of the report; in pairs with a reference, it is the second method.
    """
    by_study: dict[tuple[str, str, str], list[tuple[Contest, Method]]] = {}
    for contest, own in zip(contests, references, strict=True):
        if own is not None:
            unit = recorded_runs.unit(contest.metric)
            by_study.setdefault((contest.table, own.label, unit), []).append((contest, own))
    decided = list(zip(family, verdicts(family), strict=True))
    found = []
    for (_, _, unit), places in by_study.items():
        contest, own = places[0]
        ours = {id(each): reference for each, reference in places}
        pairs = [
            (pair, said) for pair, said in decided if ours.get(id(pair.contest)) is pair.second
        ]
        if pairs:
            methods = _of_pairs(pairs, several=len({each.model for each, _ in places}) > 1)
            registered = any(each.registration for each, _ in places)
            found.append(
                Findings(
                    title=contest.table,
                    reference=own.label,
                    unit=unit,
                    margin=None,
                    seeds=_ends([pair.common for pair, _ in pairs if any(pair.tests.values())]),
                    how=WIDEST,
                    methods=_best_first(methods, recorded_runs.sign(contest.metric)),
                    lower=recorded_runs.sign(contest.metric) < 0,
                    caveat=OTHER_VERDICTS if registered else "",
                )
            )
    return found


def _of_pairs(pairs: Sequence[tuple[Pair, str]], several: bool) -> list[Finding]:
    estimates: dict[str, dict[str, Estimate]] = {}
    said: dict[str, dict[str, str]] = {}
    for pair, verdict in pairs:
        test = pair.tests.get(pair.decided_by) or next(filter(None, pair.tests.values()), None)
        if test is not None:
            task = pair.contest.task_title
            task += f", {pair.contest.model}" if several else ""
            estimates.setdefault(pair.first.label, {})[task] = dataclasses.replace(
                test, n=pair.common
            )
            said.setdefault(pair.first.label, {})[task] = OF_PAIR[verdict]
    return [
        Finding(label, by_task, said[label], None, _single(said[label]))
        for label, by_task in estimates.items()
    ]


def _single(said: Mapping[str, str]) -> str:
    """The verdict of a method that was compared on one task alone."""
    return next(iter(said.values())) if len(said) == 1 else ""


def _ends(seeds: Sequence[int]) -> tuple[int, int]:
    """The fewest and the most."""
    return min(seeds, default=0), max(seeds, default=0)


def _best_first(found: Sequence[Finding], sign: int = 1) -> tuple[Finding, ...]:
    """The methods by their mean gain; those that lack a task come last.

    Args:
      sign: -1 where lower is better.
    """
    tasks = {task for each in found for task in each.by_task}
    return tuple(
        sorted(found, key=lambda each: (len(each.by_task) < len(tasks), -sign * each.mean))
    )


MOST_NAMES = 6
"""Of more answers, only so many are given; more methods with a verdict are counted, not named."""
ORDER = ("better", "worse", "equivalent", "undecided")


@dataclasses.dataclass(frozen=True)
class _Answer:
    """What one method gains, on all tasks or on one: `DoRA +0.24 [-2.15, +2.63]: undecided`."""

    label: str
    verdict: str
    text: str


def sentence(found: Findings) -> str:
    """What each method gains and whether that is decided, with n.

    Of many methods, it has those that are decided and the best of the others, and counts them all.
    Tasks that can show nothing are named, and the verdicts without them follow.
    """
    return found.caveat + _decided(found) + _pairs_said(found) + _of_blind_tasks(found)


def limits(found: Findings) -> list[str]:
    """What a reader of the verdicts must know, in sentences: unequal sizes, and blind tasks."""
    said = (_of_parameters(found), *found.idle, _of_blind_tasks(found))
    return [each.strip() for each in said if each]


def _of_blind_tasks(found: Findings) -> str:
    blind = [each for each in found.evidence if each.blind]
    if not blind:
        return ""
    shows = agree(len(blind), "this task shows", "these tasks show")
    said = f" {' '.join(f'{each.blind}.' for each in blind)} So {shows} nothing about adaptation."
    rest = found.without_blind
    if rest is None:
        return said
    names = [each.title for each in blind]
    return f"{said} Without {joined(names)}, {_counts(rest)}."


def _decided(found: Findings) -> str:
    if not found.methods:
        return f"Nothing could be compared with {found.reference}."
    if len(found.tasks) > 1 and all(each.over_tasks is None for each in found.methods):
        return _of_tasks(found)
    where = f"on {found.tasks[0]}"
    if len(found.tasks) > 1:
        where = f"over {len(found.tasks)} tasks ({', '.join(found.tasks)})"
    beside = _of_controls(found) + _of_parameters(found)
    beside += "".join(f" {each}" for each in found.idle) + _no_margin(found)
    every = _answers(found)
    given = _given(every)
    counts = ""
    if len(given) < len(every) or found.absent:
        methods = count(len(every) + len(found.absent), "method")
        counts = f" Of {methods}, {_counts(found, [each.label for each in given])}."
    return f"{_said(given, every)} ({_over(found, where)}).{counts}{beside}"


def _over(found: Findings, where: str) -> str:
    """What the differences are of: `points over LoRA on SST-2, 5 seeds`."""
    lower = "; lower is better" * found.lower
    seeds = span(found.seeds, "seed")
    return f"{found.unit} over {found.reference} {where}, {seeds}{lower}{_of_whom(found)}"


def _answers(found: Findings) -> list[_Answer]:
    """Those of all methods, best first, but of the controls."""
    said = []
    for each in (method for method in found.methods if not method.control):
        if each.over_tasks is not None or len(found.tasks) == 1:
            one = each.over_tasks or next(iter(each.by_task.values()))
            end = f" within ±{points_text(found.margin)}" if each.verdict == "equivalent" else ""
            end = end or _by_little(each, found)
            said.append(_answer(found, each.label, "", one, each.verdict, end))
        else:
            said += [
                _answer(found, each.label, f" on {task}", one, each.verdict_of_task.get(task, ""))
                for task, one in each.by_task.items()
            ]
    return said


def _answer(
    found: Findings, label: str, where: str, one: Estimate, verdict: str, end: str = ""
) -> _Answer:
    difference = difference_text(one, found.unit != "points" and is_raw(found.unit))
    if one.low is None:
        why = "one seed" if one.n == 1 else "all differences are equal"
        difference += f" (no interval: {why})"
    return _Answer(label, verdict, f"{label}{where} {difference}: {verdict or 'not tested'}{end}")


def _given(every: Sequence[_Answer]) -> list[_Answer]:
    """The answers that a sentence has room for: the decided ones and the best undecided one."""
    if len(every) <= MOST_NAMES:
        return list(every)
    decided = [each for verdict in ORDER[:-1] for each in every if each.verdict == verdict]
    undecided = [each for each in every if each.verdict == "undecided"][:1]
    return [*decided[: MOST_NAMES - len(undecided)], *undecided] or list(every[:1])


def _said(given: Sequence[_Answer], every: Sequence[_Answer]) -> str:
    """Answers in a sentence, which says of an undecided one that it is the best of them."""
    texts = [each.text for each in given]
    if sum(each.verdict == "undecided" for each in every) > 1 and len(given) < len(every):
        texts[-1] = f"the best of the undecided: {texts[-1].removesuffix(': undecided')}"
    return "; ".join(texts)


def _of_whom(found: Findings) -> str:
    """What the verdicts of a registered study are of."""
    gains = [each.gain for each in found.methods if each.gain is not None]
    if not gains:
        return ""
    examples = "other" if any(each.seeds_alone for each in gains) else "the same"
    return f"; for other seeds and {examples} test examples"


def _counts(found: Findings, known: Collection[str] = ()) -> str:
    """How many methods have each verdict, with their names unless all of them are known."""
    named: dict[str, list[str]] = {verdict: [] for verdict in (*ORDER, "")}
    for each in found.methods:
        if not each.control:
            named[each.verdict].append(each.label + _by_little(each, found))
    labels = {v: [e.label for e in found.methods if e.verdict == v] for v in ORDER}
    parts = [
        _part(verdict, named[verdict], found.margin, not {*labels[verdict]} <= {*known})
        for verdict in ORDER
    ]
    parts += [f"{len(named[''])} could not be tested"] * bool(named[""])
    if absent := len(found.absent):
        has = agree(absent, "has", "have")
        parts.append(f"{absent} {has} no number ({', '.join(found.absent)})")
    return joined([part for part in parts if part])


def _of_parameters(found: Findings) -> str:
    """Which of the worse methods train fewer parameters than the reference."""
    worse = [each for each in found.methods if each.verdict == "worse" and not each.control]
    fewer = [e for e in worse if e.parameters is not None and e.parameters < 1 - MATCHED]
    if not fewer:
        return ""
    names, train = joined([each.label for each in fewer]), agree(len(fewer), "trains", "train")
    return f" Of the worse, {names} {train} fewer parameters than {found.reference}."


def _of_controls(found: Findings) -> str:
    said = [f"{each.label} is {each.verdict}" for each in found.methods if each.control]
    return f" As a control, {joined(said)}." if said else ""


def _pairs_said(found: Findings) -> str:
    """The verdicts on all pairs, if these are what the study registered."""
    said = [gain.verdict for each in found.pairs for gain in each.methods]
    if not (said and found.pairs_registered):
        return ""
    apart, same = said.count("better") + said.count("worse"), said.count("equivalent")
    parts = [
        f"{apart} {agree(apart, 'differs', 'differ')}",
        f"{same} {agree(same, 'is', 'are')} equivalent",
        f"{(rest := len(said) - apart - same)} {agree(rest, 'is', 'are')} undecided",
    ]
    return f" Of {count(len(said), 'pair')} of methods, {joined(parts)}."


def _by_little(each: Finding, found: Findings) -> str:
    """What follows the name of a method that is better or worse, but within the margin."""
    shown = None if each.gain is None else each.gain.equivalent
    if each.verdict not in ("better", "worse") or shown is None or shown >= found.level:
        return ""
    return f" by less than {points_text(found.margin)}"


def _of_tasks(found: Findings) -> str:
    """The sentence where each task was decided by itself."""
    said = [verdict for each in found.methods for verdict in each.verdict_of_task.values()]
    begin = (
        f"In {count(len(said), 'comparison')} with {found.reference} "
        f"({count(len(found.methods), 'method')} on {len(found.tasks)} tasks), with "
        f"{span(found.seeds, 'seed')}"
    )
    parts = [f"{said.count('better')} found the other method better"]
    parts.append(f"{said.count('worse')} found it worse")
    parts.append(f"{said.count('undecided')} could not tell the two apart")
    parts += [f"{said.count('')} could not be tested"] * ("" in said)
    lower = ", lower is better" * found.lower
    every = _answers(found)
    answers = f"{_said(_given(every), every)} ({found.unit}{lower})"
    return f"{answers}. {begin}, {joined(parts)}.{_no_margin(found)}"


def _part(verdict: str, names: Sequence[str], margin: float | None, tell: bool) -> str:
    if not names:
        return {"better": "none is better", "worse": "none is worse"}.get(verdict, "")
    what = verdict
    if verdict == "equivalent" and margin is not None:
        what = f"equivalent within ±{points_text(margin)}"
    text = f"{len(names)} {agree(len(names), 'is', 'are')} {what}"
    if tell and verdict != "undecided" and len(names) <= MOST_NAMES:
        text += f" ({', '.join(names)})"
    return text


def points_text(margin: float | None) -> str:
    """A margin with its unit: `1 point`."""
    return f"{margin:g} {'point' if margin == 1 else 'points'}"


def _no_margin(found: Findings) -> str:
    said = {verdict for each in found.methods for verdict in each.verdict_of_task.values()}
    if found.margin is not None or said <= {"better", "worse"}:
        return ""
    return (
        " Undecided is not equal: without a margin for equivalence that was set before the runs, "
        "nothing here says that two methods are the same."
    )
