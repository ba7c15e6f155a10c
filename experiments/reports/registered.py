"""What registered studies found: gains over all tasks, and whether the runs are as registered."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.analysis import pairing, rank_stability
from experiments.analysis.choose_methods import Contest
from experiments.analysis.gains import Gains, gains
from experiments.analysis.paired_scores import table
from experiments.analysis.recorded_runs import Run
from experiments.reports import findings
from experiments.studies import registration
from experiments.studies.adherence import Adherence, adherence
from experiments.studies.registration import Registration

SHOWN = 3
"""Of more departures from a registration, or missing runs, the rest is counted."""


def found(folder: Path, runs: Sequence[Run], made: Sequence[Contest]) -> list[findings.Findings]:
    """The findings of the studies that are registered in or below a folder.

    A study without a run of its reference has none: its pairs are compared as those of any runs.

    Args:
      runs: all of the folder.
      made: the contests between them.

    Raises:
      ValueError: a study.json is damaged or was changed.
    """
    studies = []
    for path in sorted(folder.rglob(registration.FILE)):
        registered = registration.read(path.parent)
        assert registered is not None
        reference, margin = registered.protocol.reference, registered.protocol.margin
        own = [each for each in made if each.table == registered.study and not each.held_out]
        if not any(m.key == reference and m.runs for each in own for m in each.methods):
            continue
        compared = gains(own, reference=reference, margin=margin, level=registered.protocol.level)
        kept = adherence(registered, [run for run in runs if run.study.table == registered.study])
        studies.append(
            findings.of_gains(
                compared.methods,
                title=registered.study,
                reference=compared.reference,
                margin=margin,
                notes=[*_kept(registered, kept), *_of_methods(compared), *_of_seeds(own)],
            )
        )
    return studies


def _kept(registered: Registration, kept: Adherence) -> Iterator[str]:
    begin = f"Registered on {registered.written[:10]} (digest {registered.digest[:12]})"
    if kept.followed:
        yield f"{begin}. All runs are as registered."
    else:
        count = _count(len(kept.departures), "departure")
        yield f"{begin}. {count} from it: {_first(kept.departures)}."
    if kept.missing:
        yield f"Not run yet: {_first(kept.missing)}."
    for claim in registered.protocol.claims:
        yield f"Stated before: {claim}"


def _of_methods(compared: Gains) -> Iterator[str]:
    for note in compared.notes:
        yield f"{note}."
    for each in compared.methods:
        for note in each.notes:
            yield f"{each.label}: {note}."


def _of_seeds(own: Sequence[Contest]) -> Iterator[str]:
    """How often the first place repeats, and what it brings to compare by seed."""
    known = table(own)
    methods, seeds = known.scores.shape[1:]
    if methods < 2 or seeds < 2:
        return
    shares = [
        f"{share.share:.0%} of pairs of sets of {size} {'seed' if size == 1 else 'seeds'}"
        for size in (1, 3)
        if 2 * size <= seeds
        for share in [rank_stability.disjoint(known.scores, size)]
    ]
    yield (
        f"The same of {methods} methods has the best mean over {_count(len(own), 'task')} in "
        f"{' and '.join(shares)}, of {seeds} seeds; the two sets of a pair share no seed."
    )
    saved = pairing.together(
        [
            pairing.bought(first, second)
            for task in known.scores
            for first, second in itertools.combinations(task, 2)
        ]
    )
    if saved.ratio is not None:
        yield (
            "The variance of a difference between two methods is "
            f"{saved.ratio:.2f} of what it would be without pairs of the same seed."
        )


def _first(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - SHOWN} more" * (len(lines) > SHOWN)
    return "; ".join(lines[:SHOWN]) + more


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
