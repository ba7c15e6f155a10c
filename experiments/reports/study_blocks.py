"""The blocks of the project's documents: what registered studies found, beside papers' claims."""

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from experiments.analysis import collect_runs, published, recorded_runs, scored_examples
from experiments.analysis.choose_methods import Contest
from experiments.analysis.gains import Gain, gains
from experiments.analysis.labels import natural
from experiments.analysis.scored_examples import Values
from experiments.reports import registered
from experiments.reports.findings import Finding, Findings, limits, points_text, sentence
from experiments.reports.paper_claims import CLAIMS, Claim, Compared, Printed
from experiments.reports.sheets import estimate_text
from experiments.reports.tables.config_tables import RESULTS, ROOT
from experiments.studies import adherence
from experiments.studies.protocol import Protocol
from lora_jax.files.marked_documents import fill_blocks
from lora_jax.messages import count, joined, require_known, span
from lora_jax.table import NONE, Table, render_tables

Verdict = Literal["supported", "contradicted", "undecided", "not tested"]


@dataclasses.dataclass(frozen=True)
class Study:
    """A registered study, and its contests."""

    name: str
    protocol: Protocol
    contests: Sequence[Contest]
    examples: Mapping[str, Values]
    """What each example adds to the scores (`scored_examples.values`)."""
    blind: frozenset[str]
    """The tasks that show nothing about adaptation."""

    def gain(self, compared: Compared, margin: float, tasks: Sequence[str]) -> Gain:
        """What a method gains over another on some tasks, by the rules of the study."""
        made = [each for each in self.contests if each.task in tasks]
        known = {method.key for each in made for method in each.methods}
        for row in (compared.row, compared.over):
            require_known(row, known, f"no method '{row}' in {self.name}")
        found = gains(
            made,
            reference=compared.over,
            margin=margin,
            level=self.protocol.level,
            tasks=tasks,
            tests=self.protocol.tests,
            examples=self.examples,
        )
        (own,) = (each for each in found.methods if each.key == compared.row)
        return own

    def parameters(self, row: str) -> float:
        """The mean number that the adapters of a method train, over all its scored runs."""
        methods = [each for made in self.contests for each in made.methods if each.key == row]
        runs = [run.record.parameters_adapters for each in methods for run in each.runs]
        return statistics.fmean(each for each in runs if each is not None)


def verdict_on_claim(claim: Claim, gain: Gain) -> Verdict:
    """What a gain here says of a claim; it is undecided where the study's own test is.

    Otherwise a claim that a method is better follows the test: supported if better, contradicted if
    worse. A claim that it is as good, or within a margin, is supported if it is equivalent or if
    the whole interval is in that range, and contradicted if the whole interval is outside.
    """
    if claim.kind == "faster":
        return "not tested"
    low, high = gain.over_tasks.low, gain.over_tasks.high
    if gain.verdict == "undecided" or low is None or high is None:
        return "undecided"
    if claim.kind == "better":
        said: dict[str, Verdict] = {"better": "supported", "worse": "contradicted"}
        return said.get(gain.verdict, "undecided")
    most = claim.margin if claim.kind == "within" else math.inf
    if gain.verdict == "equivalent" or (-claim.margin <= low and high <= most):
        return "supported"
    return "contradicted" if high <= -claim.margin or low >= most else "undecided"


def claims_block(results: Path, claims: Sequence[Claim] = CLAIMS) -> str:
    """The claims beside what studies below a folder found, as two tables in Markdown.

    Raises:
      ValueError: a claim names a study, a method or a printed cell that is not there.
    """
    cells = {(*cell.line, cell.task): cell for cell in published.load()}
    studies: dict[str, Study] = {}
    all_tasks, others = [], []
    for claim in claims:
        try:
            first = [_paper(claim), claim.says, _effect(claim, cells)]
            for own in claim.compared:
                if own.study not in studies:
                    studies[own.study] = _read(results, own.study)
                row, other = _rows(claim, own, studies[own.study], _ratios(claim, cells))
                all_tasks.append([*first, *row])
                others += [[claim.paper, *other]] if other else []
                first = ["", "", ""]
        except ValueError as error:
            raise ValueError(f"claim of {claim.paper}, {claim.table}: {error}") from error
    heads = ("paper", "claim", "its effect", "compared here", "gain here", "parameters", "verdict")
    tables = [Table(heads, all_tasks, "Claims of papers, and gains here, points")]
    heads = ("paper", "compared here", "all tasks", "verdict", "such tasks", "gain", "verdict")
    title = "The same gains on the tasks that can show a difference, points"
    return render_tables("markdown", [*tables, Table(heads, others, title)])


def _read(results: Path, name: str) -> Study:
    runs = recorded_runs.find(results / name) if (results / name).is_dir() else []
    kept = adherence.of_folder(results / name, collect_runs.select(runs, None, "full")[0])
    if len(kept) != 1:
        raise ValueError(f"no registered study in {results / name}")
    made = registered.contests_of(kept[0])
    blind = frozenset(each.task for each in registered.evidence_of(kept[0], made) if each.blind)
    return Study(name, kept[0].registered.protocol, made, scored_examples.values(made), blind)


def _rows(
    claim: Claim, own: Compared, study: Study, ratios: Sequence[float]
) -> tuple[list[str], list[str]]:
    """The cells of a comparison in both tables; none in the second if no task is left out.

    The verdict of the first table is undecided unless both sets of tasks lead to it.
    """
    tasks = study.protocol.columns
    gain = study.gain(own, claim.margin, tasks)
    (over,) = {m.label for c in study.contests for m in c.methods if m.key == own.over}
    compared, said = f"{gain.label} over {over}", _said(claim, gain)
    seeds, number = count(gain.over_tasks.n, "seed"), count(len(gain.by_task), "task")
    ours = _times([study.parameters(own.row) / study.parameters(own.over)])
    paper = _times(ratios)
    parameters = f"{ours}, as in the paper" if ours == paper else f"{ours}; paper: {paper}"
    row = [
        f"{compared} ({study.name}: {number}, {seeds})",
        estimate_text(gain.over_tasks),
        parameters,
    ]
    others = [task for task in tasks if task not in study.blind]
    if claim.kind == "faster" or others == list(tasks):
        return [*row, said], []
    second = [compared, estimate_text(gain.over_tasks), said, "none", NONE, "undecided"]
    if others:
        rest = study.gain(own, claim.margin, others)
        titles = [each.task_title for each in study.contests if each.task in others]
        second[3:] = [", ".join(titles), estimate_text(rest.over_tasks), _said(claim, rest)]
    return [*row, said if second[-1] == said else "undecided"], second


def _paper(claim: Claim) -> str:
    return f"[{claim.paper}](https://arxiv.org/abs/{claim.arxiv}), {claim.table}"


_Cells = Mapping[tuple[str, ...], published.Published]


def _cell(
    claim: Claim, printed: Printed, row: str, task: str, cells: _Cells
) -> published.Published:
    key = (*(printed.source or (claim.paper, claim.table)), printed.model, row, task)
    if key not in cells:
        raise ValueError(f"no cell {', '.join(key)} in {published.PATH.name}")
    return cells[key]


def _said(claim: Claim, gain: Gain) -> str:
    """The verdict, and whether an undecided difference is small."""
    found = verdict_on_claim(claim, gain)
    small = found == "undecided" and gain.verdict == "equivalent"
    return found + f" (within ±{claim.margin:g})" * small


def effect(claim: Claim, printed: Printed, cells: _Cells) -> float:
    """The mean over tasks of the printed differences.

    Args:
      cells: by paper, table, model, row and task.

    Raises:
      ValueError: a cell that is not there.
    """
    rows = [row for row in (printed.row, printed.over) if row]
    found = [[_cell(claim, printed, row, t, cells).value for t in printed.tasks] for row in rows]
    means = [statistics.fmean(each) for each in found]
    return means[0] - sum(means[1:])


def _effect(claim: Claim, cells: _Cells) -> str:
    said = [
        f"{published.MODEL_TITLES.get(each.model, each.model)}: "
        f"{each.shown.format(effect(claim, each, cells))}"
        for each in claim.printed
    ]
    return ", ".join(said) or "no number at hand"


def _ratios(claim: Claim, cells: _Cells) -> list[float]:
    """The parameters of the paper's method divided by those of the other, as it prints them."""
    known = list(_printed_ratios(claim, cells))
    return [claim.parameters] if not known and claim.parameters else known


def _printed_ratios(claim: Claim, cells: _Cells) -> Iterator[float]:
    for each in claim.printed:
        rows = [row for row in (each.row, each.over) if row]
        known = [_cell(claim, each, r, each.tasks[0], cells).trained_parameters for r in rows]
        if len(known) == 2 and known[0] and known[1]:
            yield known[0] / known[1]


def _times(ratios: Sequence[float]) -> str:
    """Numbers of parameters divided by others, in words."""
    return " and ".join(map(_time, ratios)) or "not printed"


def _time(ratio: float) -> str:
    if abs(ratio - 1) < 0.005:
        return "equal"
    times, more = max(ratio, 1 / ratio), "as many" if ratio > 1 else "fewer"
    return f"{times:,.0f} times {more}" if times >= 100 else f"{times:.3g} times {more}"


def fill(text: str, results: Path = ROOT / RESULTS) -> str:
    """A text with new blocks, such as that of `<!-- study: lora_scale -->`.

    The block of `<!-- verdicts: against_lora -->` is a short table of one study (`verdict_block`),
    and that of `<!-- papers -->` compares papers' claims with what the studies found.

    Args:
      results: the folder that has the folders of studies; a block's name is one of these.

    Raises:
      ValueError: a marker without its partner, or a name that is not a folder of registered
        studies.
    """
    text = fill_blocks(text, "study", lambda name: study_block(results / name))
    text = fill_blocks(text, "verdicts", lambda name: verdict_block(_found(results / name)))
    return fill_blocks(text, "papers", lambda _: claims_block(results))


def study_block(folder: Path, size: str = "full") -> str:
    """The verdict and the gains of each registered study in or below a folder, as Markdown."""
    names = natural(
        each.parent.relative_to(folder).as_posix()
        for each in folder.rglob(recorded_runs.REGISTRATION)
    )
    if not names:
        raise ValueError(f"{folder} has no registered study")
    studies = {name: _found(folder / name, size) for name in names}
    if len(studies) == 1:
        (study,) = studies.values()
        return render_tables("markdown", study.sheets, first=[sentence(study)])
    verdicts = [f"{name}: {sentence(study)}" for name, study in studies.items()]
    kinds = zip(*(study.sheets for study in studies.values()), strict=True)
    sheets = [sheet for own in kinds for sheet in together(dict(zip(studies, own, strict=True)))]
    return render_tables("markdown", sheets, first=verdicts)


def verdict_block(found: Findings) -> str:
    """What a study settles, claim by claim in a short table, and what limits it, as Markdown.

    Undecided methods share a row; if no method is better, one row says so of all.
    """
    over, within = found.reference, f"within {points_text(found.margin)}"
    claims = {
        "better": f"is better than {over}",
        "equivalent": f"is {within} of {over}",
        "worse": f"is worse than {over}",
    }
    settled = [each for verdict in claims for each in found.methods if each.verdict == verdict]
    rest = [each for each in found.methods if each not in settled]
    rows = [
        [f"{_named(each)} {claims[each.verdict]}", "shown", _gain(each), _where(found, [each])]
        for each in sorted(settled, key=lambda each: each.control)
    ]
    methods = [each for each in found.methods if not each.control]
    if methods and not any(each.verdict == "better" for each in methods):
        others = (found.without_blind or found).methods
        better = {each.label for each in others if each.verdict == "better"}
        claim = f"one of {count(len(methods), 'method')} {claims['better']}"
        where = _where(found, [each for each in methods if each.label in better])
        rows.insert(0, [claim, "not shown", f"{_gain(methods[0])}, the best", where])
    if rest:
        claim = f"{joined([_named(each) for each in rest])}: better, worse or {within}"
        ends = " to ".join(dict.fromkeys(_gain(each) for each in (rest[0], rest[-1])))
        rows.append([claim, "undecided", ends, _where(found, rest)])
    title = f"{count(len(found.tasks), 'task')} ({', '.join(found.tasks)}), "
    title += span(found.seeds, "seed")
    heads = (
        "claim",
        "verdict",
        f"{found.unit} over {over}, {100 * (1 - found.level):g}% interval",
        "where",
    )
    first = [found.caveat] * bool(found.caveat)
    table = render_tables("markdown", [Table(heads, rows, title)], first=first)
    return "\n".join([table, *(f"* {each}" for each in limits(found))])


def _named(each: Finding) -> str:
    return each.label + " (a control)" * each.control


def _gain(each: Finding) -> str:
    return NONE if each.over_tasks is None else estimate_text(each.over_tasks)


def _where(found: Findings, methods: Sequence[Finding]) -> str:
    """How many tasks a verdict is over, and what it is without those that show nothing."""
    tasks = count(len(found.tasks), "task")
    if found.without_blind is None:
        return tasks
    blind = joined([each.title for each in found.evidence if each.blind])
    later = {each.label: each.verdict for each in found.without_blind.methods}
    changed = [
        f"{each.label} " * (len(methods) > 1) + later[each.label]
        for each in methods
        if later.get(each.label, each.verdict) != each.verdict
    ]
    if not changed:
        return f"{tasks}; the same without {blind}"
    return f"{tasks}; {joined(changed)} without {blind}"


def _found(folder: Path, size: str = "full") -> Findings:
    runs, _ = collect_runs.select(recorded_runs.find(folder), None, size)
    (study,) = registered.found(folder, runs)
    return study


def together(sheets: Mapping[str, Table]) -> list[Table]:
    """One table of several studies, each with its name before its rows.

    If some have other columns, each has a table of its own.
    """
    if len({tuple(sheet.heads) for sheet in sheets.values()}) > 1:
        return [dataclasses.replace(e, title=f"{name}: {e.title}") for name, e in sheets.items()]
    rows = [[name, *row] for name, sheet in sheets.items() for row in sheet.rows]
    first = list(sheets.values())[:1]
    return [dataclasses.replace(e, heads=("study", *e.heads), rows=rows) for e in first]
