"""What registered studies found: gains over all tasks, and whether the runs are as registered."""

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.analysis import (
    paired_scores,
    parameters,
    rank_stability,
    recorded_runs,
    scored_examples,
    task_evidence,
)
from experiments.analysis.choose_methods import Contest, Method, contests
from experiments.analysis.gains import Gain, Gains, all_pairs, changed_without_a_task, gains
from experiments.analysis.labels import Titles, heading, method, told_apart
from experiments.analysis.paired_scores import table
from experiments.analysis.recorded_runs import Run
from experiments.analysis.scored_examples import Values
from experiments.analysis.task_evidence import HEAD, SAME, Evidence, equal_rows, evidence
from experiments.reports import claims, findings
from experiments.reports.sheets import estimate_text
from experiments.reports.tables import config_tables
from experiments.studies import adherence, protocol, registration
from experiments.studies.adherence import Adherence
from experiments.studies.protocol import Protocol
from experiments.studies.training import NO_RATE
from lora_jax.messages import agree, count, joined

SHOWN = 3
"""Of more departures from a registration, or missing runs, the rest is counted."""
FEWEST_RATES = 5
"""Two on each side of the middle: with fewer, the report says that a grid is small."""


def found(folder: Path, runs: Sequence[Run]) -> list[findings.Findings]:
    """The findings of the studies that are registered in or below a folder.

    Args:
      runs: the selected ones, of one size.

    Raises:
      ValueError: a study.json is damaged or was changed.
    """
    return [of_study(each) for each in adherence.of_folder(folder, runs)]


def of_study(kept: Adherence, pairs: bool = False) -> findings.Findings:
    """The findings of a study: of the runs that are as registered, at the rate of its rule.

    Args:
      pairs: whether to compare all pairs of methods even if that was not registered.
    """
    protocol, name = kept.registered.protocol, kept.registered.study
    shown, titles, made = _contests(kept)
    labels = titles.rows
    known = any(method.key == protocol.reference for each in made for method in each.methods)
    examples = scored_examples.values(made)
    judged = _judged(made, examples, protocol, protocol.columns) if known else ()
    compared, own_pairs = next(iter(judged), None), protocol.compare == "pairs"
    of_pairs = judged if own_pairs else ()
    if known and pairs and not own_pairs:
        by_pairs = dataclasses.replace(protocol, compare="pairs")
        of_pairs = _judged(made, examples, by_pairs, protocol.columns)
    methods = [_without(each, shown["controls"]) for each in made]
    same = [(each.task_title, group) for each in made for group in equal_rows(each)]
    notes = [*_kept(kept)]
    if compared is None:
        notes += [claims.stated(each) for each in protocol.claims]
    else:
        stated = protocol.claims, shown["checks"]
        notes += claims.sentences(*stated, compared, shown["controls"], table(methods).scores)
    notes += shown["notes"]
    seen = evidence_of(kept, made)
    if compared is not None:
        apart = {protocol.reference, *shown["controls"]}
        others = {key: label for key, label in labels.items() if key not in apart}
        notes += [*_of_bounds(compared, others), *_of_methods(compared), *_between_tasks(compared)]
        notes += _of_seeds_alone(compared)
        if of_pairs and not own_pairs:
            notes.append(
                "--pairs compares all pairs of methods, which was not registered. The verdicts of "
                f"the study are those on {labels[protocol.reference]}."
            )
        if not kept.missing:
            notes += _of_left_out_tasks(made, examples, compared, protocol)
        notes += _of_seeds(methods)
        notes += _of_equal_rows(same)
    units = {recorded_runs.unit(each.metric) for each in made}
    if len(units) > 1:
        notes.append(
            f"The mean over tasks has no unit: scores are in {' and '.join(sorted(units))}."
        )
    study: dict[str, Any] = {
        "title": name,
        "reference": labels[protocol.reference],
        "margin": protocol.margin,
        "level": protocol.level,
        "unit": " and ".join(sorted(units)) or "points",
        "headings": titles.columns,
        "controls": shown["controls"],
    }
    blind = [each for each in seen if each.blind]
    rest = [each for each in made if each.task not in {task.task for task in blind}]
    trained, columns, without = parameters.of_methods(made), dict[str, Mapping[str, str]](), None
    own = trained.get(protocol.reference, ())
    shares = {
        key: share
        for key, each in trained.items()
        if (share := parameters.share(each, own)) is not None
    }
    if known:
        study["shares"] = shares
        columns[f"parameters (times those of {labels[protocol.reference]})"] = {
            key: f"{parameters.text(each)} ({shares[key]:.2g})" if key in shares else ""
            for key, each in trained.items()
        }
        columns |= _matched(made, examples, protocol, trained, labels)
    if known and blind and rest:
        others = _judged(rest, examples, protocol)[0].methods
        without = findings.of_gains(others, **study)
        named = joined([each.title for each in blind])
        notes.append(
            f"Leaving out {named} was not registered. A task is judged by the scores of "
            f"{labels[protocol.reference]} alone, so one where it was lucky is kept more often."
        )
        columns[f"without {named}"] = {
            each.key: f"{each.verdict}, {estimate_text(each.over_tasks)}" for each in others
        }
    said = findings.of_gains(
        compared.methods if compared else (),
        notes=notes,
        tasks=len(protocol.columns),
        columns=columns,
        **study,
    )
    asked = findings.questions(shown["questions"], said, protocol.reference)
    return dataclasses.replace(
        said,
        questions=asked,
        caveat=_caveat(kept, compared, titles.columns),
        absent=tuple(_absent(labels, compared)),
        reference_key=protocol.reference,
        model=made[0].model if made else "",
        metrics={each.task: each.metric for each in made},
        pairs=of_pairs,
        pairs_registered=own_pairs,
        evidence=seen,
        idle=tuple(_idle(same)),
        without_blind=without,
    )


def contests_of(kept: Adherence) -> list[Contest]:
    """The contests of a study, one for each task: of the runs that are as registered."""
    return _contests(kept)[2]


def evidence_of(kept: Adherence, made: Sequence[Contest]) -> tuple[Evidence, ...]:
    """What each task of a study can show.

    Args:
      made: as `contests_of` gives them.
    """
    begun = task_evidence.read_untrained(kept.folder) if kept.folder is not None else {}
    start = {task: own.predictions for task, own in begun.items() if own.score is not None}
    return evidence(made, kept.registered.protocol.reference, start)


def _contests(kept: Adherence) -> tuple[Mapping[str, Any], Titles, list[Contest]]:
    """The table of a study, what it calls its methods and tasks, and its contests."""
    name, rows = kept.registered.study, kept.registered.protocol.rows
    shown = config_tables.tables().get(name) or config_tables.registered(kept.registered)
    labels = told_apart({row: shown["rows"].get(row) or method(row) for row in rows})
    titles = dataclasses.replace(config_tables.titles_of(shown), rows=labels)
    return shown, titles, contests(kept.counted, {name: titles}, shown["varies"])


def _judged(
    made: Sequence[Contest],
    examples: Mapping[str, Values],
    protocol: Protocol,
    tasks: Sequence[str] = (),
) -> tuple[Gains, ...]:
    """The gains over the reference of a study, or over each of its methods if it compares pairs."""
    rules: dict[str, Any] = {"tasks": tasks, "tests": protocol.tests, "level": protocol.level}
    rules |= {"reference": protocol.reference, "margin": protocol.margin, "examples": examples}
    return all_pairs(made, **rules) if protocol.compare == "pairs" else (gains(made, **rules),)


def _without(contest: Contest, rows: Collection[str]) -> Contest:
    """A contest without some of its rows."""
    return dataclasses.replace(
        contest, methods=tuple(each for each in contest.methods if each.key not in rows)
    )


def _matched(
    made: Sequence[Contest],
    examples: Mapping[str, Values],
    protocol: Protocol,
    trained: Mapping[str, tuple[int, ...]],
    labels: Mapping[str, str],
) -> dict[str, Mapping[str, str]]:
    """A column of gains over the reference's method at equal parameters, if a study has such rows.

    These are rows that differ from the reference in the numbers of its variant alone, as its rank.
    """
    runs = {method.key: method.runs for each in made for method in each.methods if method.runs}
    sizes = {key: (own[0].config.variant.name, own[0].config.targets) for key, own in runs.items()}
    alike = [key for key, size in sizes.items() if size == sizes.get(protocol.reference)]
    found = {}
    for key in trained:
        same = [each for each in alike if parameters.matched(trained[key], trained[each])]
        if key in alike or not same or protocol.reference in same:
            continue
        rules = dataclasses.replace(protocol, reference=same[0], compare="reference")
        (gain,) = (e for e in _judged(made, examples, rules)[0].methods if e.key == key)
        found[key] = f"{estimate_text(gain.over_tasks)} over {labels[same[0]]}"
    title = f"gain over {labels[protocol.reference]} with as many parameters"
    return {title: found} if found else {}


def _absent(labels: Mapping[str, str], compared: Gains | None) -> Iterator[str]:
    """The labels of the registered methods that have no number on any task."""
    if compared is not None:
        known = {compared.reference_key, *(each.key for each in compared.methods)}
        yield from (label for row, label in labels.items() if row not in known)


def _caveat(kept: Adherence, compared: Gains | None, headings: Mapping[str, str]) -> str:
    """What must stand before a verdict: that runs are missing, or runs or tasks were left out."""
    said = ""
    if kept.missing:
        there = f"{len(kept.counted)} of {kept.planned} scored runs count so far"
        said += f"Incomplete, verdicts may change: {there}. "
    said += f"{_left_out(kept)}. " * bool(kept.departures)
    if compared is not None:
        gone = _gone(kept, compared)
        lost = [f"{headings.get(task) or heading(task)} ({why})" for task, why in gone.items()]
        said += f"Left out, though registered: {', '.join(lost)}. " * bool(lost)
    return said


def _gone(kept: Adherence, compared: Gains) -> dict[str, str]:
    """The registered tasks of which nothing is known of the reference, and why.

    A task that was not run at all is missing, which is said by itself.
    """
    why = {task: f"{compared.reference}: {said}" for task, said in compared.lost.items()}
    planned = [] if kept.missing else kept.registered.protocol.columns
    return {task: "no scored run" for task in planned if task not in compared.tasks} | why


def _left_out(kept: Adherence) -> str:
    out = len(kept.left_out)
    return f"{count(out, 'run')} {agree(out, 'is', 'are')} not as registered and left out"


def _kept(kept: Adherence) -> Iterator[str]:
    registered = kept.registered
    begin = f"Registered on {registered.written[:10]} (digest {registered.digest[:12]})"
    if kept.followed:
        yield f"{begin}. All runs are as registered."
    else:
        yield f"{begin}. {_left_out(kept)}: {_first(kept.departures)}."
    if kept.folder is not None:
        yield registration.committed(kept.folder, registered, kept.runs)
    if not registered.budgets:
        yield (
            "The registration comes from an earlier version, which says nothing of metrics and "
            "families of tests. So it cannot show that these were chosen before the runs. "
            "Budgets it fixes, by its digests of settings."
        )
    if kept.missing:
        yield f"Still missing: {_first(kept.missing)}."
    if kept.untrained:
        yield f"{NO_RATE[0].upper()}{NO_RATE[1:]}: {_first(kept.untrained)}."
    if kept.edges:
        yield (
            "The rule allows no further rates, and better ones may lie beyond those of "
            f"{_first(kept.edges)}."
        )
    if (number := len(protocol.first_places(registered.protocol.rates))) < FEWEST_RATES:
        yield (
            f"Each method begins with {count(number, 'learning rate')}. With fewer than "
            f"{FEWEST_RATES}, a better one may lie beside those tried, so a difference between "
            "methods may be one of their rates."
        )


def _of_bounds(compared: Gains, others: Mapping[str, str]) -> Iterator[str]:
    """The upper bounds of gains over all tasks: the largest, those of the margin or more, and none.

    Args:
      others: the labels of all methods that are compared with the reference, by key.
    """
    whole = [each for each in compared.methods if each.adjusted is not None]
    bounds = {e.key: e.upper for e in whole if e.upper is not None and e.key in others}
    if bounds:
        largest = max(bounds, key=bounds.__getitem__)
        above = [others[key] for key, bound in bounds.items() if bound >= compared.margin]
        yield (
            f"The largest one-sided upper bound of a gain over {compared.reference} is "
            f"{bounds[largest]:+z.2f}, of {others[largest]}. Of {count(len(bounds), 'bound')}, "
            f"{len(above)} {agree(len(above), 'is', 'are')} the margin or more"
            f"{': ' * bool(above)}{', '.join(above)}."
        )
    if without := [label for key, label in others.items() if key not in bounds]:
        has = agree(len(without), "has", "have")
        yield (
            f"{count(len(without), 'method')} of {len(others)} {has} no upper bound "
            f"over all tasks: {', '.join(without)}. Nothing is shown about the bounds of all "
            "methods."
        )


def _of_methods(compared: Gains) -> Iterator[str]:
    for note in compared.notes:
        yield f"{note}."
    for each in compared.methods:
        for note in each.notes:
            yield f"{each.label}: {note}."


def _between_tasks(compared: Gains) -> Iterator[str]:
    known = {each.label: each.between_tasks for each in compared.methods}
    if said := [f"{value:.2f} ({label})" for label, value in known.items() if value is not None]:
        yield (
            "Without the noise of seeds and examples, gains have a standard deviation between "
            f"tasks of {', '.join(said)}. It is estimated by moments (Hedges, 1983), roughly where "
            "tasks are few. At 0, this noise explains all that tasks differ by."
        )


def _of_seeds_alone(compared: Gains) -> Iterator[str]:
    """Which verdicts would be others if they were of new seeds on the same examples."""
    alone = [(each, each.seeds_alone.verdict) for each in compared.methods if each.seeds_alone]
    others = [f"{each.label} {said}" for each, said in alone if said != each.verdict]
    if alone:
        yield (
            "Verdicts are over new seeds and new examples. Over seeds alone, on the same examples, "
            + (f"these are others: {', '.join(others)}." if others else "they are the same.")
        )


def _of_left_out_tasks(
    made: Sequence[Contest], examples: Mapping[str, Values], compared: Gains, protocol: Protocol
) -> Iterator[str]:
    """Which verdicts depend on one task."""
    changes = changed_without_a_task(
        made, compared, len(protocol.columns), lambda others: _judged(others, examples, protocol)[0]
    )
    if changes is None:
        return
    titles = {contest.task: contest.task_title for contest in made}
    said = [f"Without {titles[task]}: {_verdicts(own)}." for task, own in changes.items() if own]
    some = "some verdicts change" if said else "no verdict changes"
    yield " ".join([f"Where one task is left out, which was not registered, {some}.", *said])


def _verdicts(found: Sequence[Gain]) -> str:
    return ", ".join(
        f"{each.label} {each.verdict} ({each.over_tasks.mean:+z.2f})" for each in found
    )


def _of_seeds(own: Sequence[Contest]) -> Iterator[str]:
    """How often the first place repeats, and what it brings to compare by seed."""
    known = table(own)
    methods, seeds = known.scores.shape[1:]
    for note in known.notes:
        yield f"Of the order of methods: {note}."
    if methods < 2 or seeds < 2:
        yield "The order of methods is not resampled: too few have scores of the same seeds."
        return
    shares = [
        f"{_share(share)} with sets of {count(size, 'seed')}"
        for size in (1, 3)
        if 2 * size <= seeds
        for share in [rank_stability.disjoint(known.scores, size)]
    ]
    yield (
        f"Two sets of these {seeds} seeds that share none agree on which of {methods} methods has "
        f"the best mean over {count(len(own), 'task')}: in {' and '.join(shares)}. By chance, "
        f"they would in {1 / methods:.0%}."
    )
    resampled = rank_stability.stability(known.scores, range(1, seeds + 1))
    whole = resampled[-1].with_another
    enough = rank_stability.settles(resampled)
    repeats = f"from {count(enough, 'seed')} on" if enough else f"with none of up to {seeds} seeds"
    yield (
        f"With resampled seeds, the whole order repeats in {whole.order:.0%} and the first place "
        f"in {whole.first:.0%} of pairs of studies of {seeds} seeds; the first place repeats in "
        f"{rank_stability.REPEATS:.0%} or more {repeats}. Both studies of a pair are drawn from "
        "the same runs, so these shares are higher than those of new runs would be: equal "
        "methods, too, seem to keep an order."
    )
    saved = paired_scores.pooled(
        [
            paired_scores.bought(first, second)
            for task in known.scores
            for first, second in itertools.combinations(task, 2)
        ]
    )
    if saved.ratio is not None:
        yield (
            "The variance of a difference between two methods is "
            f"{saved.ratio:.2f} of what it would be without pairs of the same seed."
        )


def _of_equal_rows(same: Sequence[tuple[str, Sequence[Method]]]) -> Iterator[str]:
    """Which methods gave the same predictions as others.

    Args:
      same: the title of a task, and methods that agree there (`equal_rows`).
    """
    for task, (first, *others) in same:
        gives = agree(len(others), "gives", "give")
        yield (
            f"On {task}, {joined([each.label for each in others])} {gives} the same predictions as "
            f"{first.label}, but for {SAME:.0%} of their spread or less."
        )


def _idle(same: Sequence[tuple[str, Sequence[Method]]]) -> Iterator[str]:
    """Which adapters did nothing: with them, the head gives the predictions that it gives alone."""
    for task, (first, *others) in same:
        if first.key == HEAD:
            names, which = joined([each.label for each in others]), agree(len(others), "", "s")
            yield f"On {task}, the adapter{which} of {names} did nothing."


def _share(found: rank_stability.Share) -> str:
    error = "" if found.error is None else f", standard error {found.error:.0%}"
    return f"{found.share:.0%} ({count(found.pairs, 'pair')}{error})"


def _first(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - SHOWN} more" * (len(lines) > SHOWN)
    return "; ".join(lines[:SHOWN]) + more
