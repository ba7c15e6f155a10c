"""Say in one sentence what a study found."""

from collections.abc import Sequence

from experiments.analysis.parameters import MATCHED
from experiments.plurals import agree, count
from experiments.reports.findings import Finding, Findings

MOST_NAMES = 6
"""More methods with a verdict than these are counted, not named."""
ORDER = ("better", "worse", "equivalent", "undecided")


def sentence(found: Findings) -> str:
    """How many methods are better, worse, equivalent and undecided, with the margin and n.

    Tasks that can show nothing are named, and the verdicts without them follow.
    """
    return found.caveat + _decided(found) + _of_pairs(found) + _of_blind_tasks(found)


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
    return f"{said} Without {_list(names)}, {_counts(rest)}."


def _decided(found: Findings) -> str:
    if not found.methods:
        return f"Nothing could be compared with {found.reference}."
    if len(found.tasks) > 1 and all(each.over_tasks is None for each in found.methods):
        return _of_tasks(found)
    where = f"on {found.tasks[0]}"
    if len(found.tasks) > 1:
        where = f"over {len(found.tasks)} tasks ({', '.join(found.tasks)})"
    methods = sum(not each.control for each in found.methods) + len(found.absent)
    to_compare = "to compare" if found.absent else "compared"
    begin = f"Of {count(methods, 'method')} {to_compare} with {found.reference} {where}"
    idle = "".join(f" {each}" for each in found.idle)
    beside = _of_controls(found) + _of_parameters(found) + idle + _no_margin(found)
    return f"{begin}, with {_seeds(found)}{_of_whom(found)}, {_counts(found)}.{beside}"


def _of_whom(found: Findings) -> str:
    """What the verdicts of a registered study are of, in brackets."""
    gains = [each.gain for each in found.methods if each.gain is not None]
    if not gains:
        return ""
    examples = "other" if any(each.seeds_alone for each in gains) else "the same"
    return f" (for other seeds and {examples} test examples)"


def _counts(found: Findings) -> str:
    """How many methods have each verdict, with their names."""
    named: dict[str, list[str]] = {verdict: [] for verdict in (*ORDER, "")}
    for each in found.methods:
        if not each.control:
            named[each.verdict].append(each.label + _by_little(each, found))
    parts = [_part(verdict, named[verdict], found.margin) for verdict in ORDER]
    parts += [f"{len(named[''])} could not be tested"] * bool(named[""])
    if absent := len(found.absent):
        has = agree(absent, "has", "have")
        parts.append(f"{absent} {has} no number ({', '.join(found.absent)})")
    return _list([part for part in parts if part])


def _of_parameters(found: Findings) -> str:
    """Which of the worse methods train fewer parameters than the reference."""
    worse = [each for each in found.methods if each.verdict == "worse" and not each.control]
    fewer = [e for e in worse if e.parameters is not None and e.parameters < 1 - MATCHED]
    if not fewer:
        return ""
    names, train = _list([each.label for each in fewer]), agree(len(fewer), "trains", "train")
    return f" Of the worse, {names} {train} fewer parameters than {found.reference}."


def _of_controls(found: Findings) -> str:
    said = [f"{each.label} is {each.verdict}" for each in found.methods if each.control]
    return f" As a control, {_list(said)}." if said else ""


def _of_pairs(found: Findings) -> str:
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
    return f" Of {count(len(said), 'pair')} of methods, {_list(parts)}."


def _by_little(each: Finding, found: Findings) -> str:
    """What follows the name of a method that is better or worse, but within the margin."""
    shown = None if each.gain is None else each.gain.equivalent
    if each.verdict not in ("better", "worse") or shown is None or shown >= found.level:
        return ""
    return f" by less than {_points(found.margin)}"


def _of_tasks(found: Findings) -> str:
    """The sentence where each task was decided by itself."""
    said = [verdict for each in found.methods for verdict in each.verdict_of_task.values()]
    begin = (
        f"In {count(len(said), 'comparison')} with {found.reference} "
        f"({count(len(found.methods), 'method')} on {len(found.tasks)} tasks), with "
        f"{_seeds(found)}"
    )
    parts = [f"{said.count('better')} found the other method better"]
    parts.append(f"{said.count('worse')} found it worse")
    parts.append(f"{said.count('undecided')} could not tell the two apart")
    parts += [f"{said.count('')} could not be tested"] * ("" in said)
    return f"{begin}, {_list(parts)}.{_no_margin(found)}"


def _part(verdict: str, names: Sequence[str], margin: float | None) -> str:
    if not names:
        return {"better": "none is better", "worse": "none is worse"}.get(verdict, "")
    what = verdict
    if verdict == "equivalent" and margin is not None:
        what = f"equivalent within ±{_points(margin)}"
    text = f"{len(names)} {agree(len(names), 'is', 'are')} {what}"
    if verdict != "undecided" and len(names) <= MOST_NAMES:
        text += f" ({', '.join(names)})"
    return text


def _points(margin: float | None) -> str:
    return f"{margin:g} {'point' if margin == 1 else 'points'}"


def _no_margin(found: Findings) -> str:
    if found.margin is not None:
        return ""
    return (
        " Undecided is not equal: without a margin for equivalence that was set before the runs, "
        "nothing here says that two methods are the same."
    )


def _seeds(found: Findings) -> str:
    fewest, most = found.seeds
    return count(most, "seed") if fewest == most else f"{fewest} to {most} seeds"


def _list(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
