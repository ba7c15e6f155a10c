"""Say whether the runs of a study are those that were registered."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from experiments.analysis.collect_runs import left_out
from experiments.analysis.recorded_runs import REGISTRATION, Run
from experiments.studies import registration
from experiments.studies.protocol import best_place, first_places, grown, rate_at
from experiments.studies.registration import Planned, Registration
from experiments.studies.training import ENDED, cell_digest
from lora_jax.records.run_record import Record


@dataclasses.dataclass(frozen=True)
class Adherence:
    """What differs from the registration, and what has not been run, a line for each."""

    registered: Registration
    departures: tuple[str, ...]
    missing: tuple[str, ...]
    untrained: tuple[str, ...]
    """Methods that no learning rate trained to the end: they have no scored run, and need none."""
    edges: tuple[str, ...]
    """Methods whose best rate is the last that the rule allows: a better one may lie beyond it."""
    counted: tuple[Run, ...]
    """The scored runs that are as registered, with the rate that the rule chooses."""
    left_out: tuple[Run, ...]
    """The runs that are not as registered, which departures are about."""
    planned: int
    """How many scored runs there are when the study is complete."""
    runs: tuple[Run, ...] = ()
    """All runs that carry the digest of the registration, those that chose rates, too."""
    folder: Path | None = None
    """Where the study is registered."""

    @property
    def followed(self) -> bool:
        """Whether all runs are as registered; some may not have been run yet."""
        return not self.departures


def of_folder(folder: Path, runs: Sequence[Run], every: Sequence[Run] = ()) -> list[Adherence]:
    """How runs keep to each study that is registered in or below a folder.

    A copy within a study's own folder is part of that study.

    Args:
      runs: the selected ones, of one size.
      every: these and the others. A study that only the others carry out was not selected.

    Raises:
      ValueError: a study.json is damaged or was changed, or two folders have the same study.
    """
    found, places = [], dict[str, Path]()
    for path in sorted(folder.rglob(REGISTRATION), key=lambda each: (len(each.parts), each)):
        registered = registration.read(path.parent)
        assert registered is not None
        first = places.setdefault(registered.digest, path.parent)
        if first in path.parent.parents:
            continue
        if first != path.parent:
            raise ValueError(
                f"{first} and {path.parent} have the same study: give one of them (--results)"
            )
        own, others = (_runs_of(registered, path.parent, each) for each in (runs, every))
        if _carries(registered, own) or not _carries(registered, others):
            found.append(dataclasses.replace(adherence(registered, own), folder=path.parent))
    return found


def without_departures(studies: Sequence[Adherence], runs: Sequence[Run]) -> list[Run]:
    """The runs but for those that these studies leave out."""
    left = {id(run) for kept in studies for run in kept.left_out}
    return [run for run in runs if id(run) not in left]


def as_registered(
    folder: Path, runs: Sequence[Run], every: Sequence[Run]
) -> tuple[list[Run], list[str]]:
    """The runs that no study in or below a folder leaves out, and a note on the others.

    Arguments are those of `of_folder`.
    """
    kept = without_departures(of_folder(folder, runs, every), runs)
    said = left_out(len(runs) - len(kept), "not as the study registered them")
    return kept, [said] * bool(said)


def elsewhere(known: set[str], runs: Sequence[Run]) -> list[str]:
    """A note on runs of a registered study whose study.json is not among the known digests."""
    if not {run.study.registration for run in runs} - {"", *known}:
        return []
    return [
        "Warning: these runs belong to a registered study, whose study.json is not in --results or "
        "below. Its margin, its rules and its verdicts are not known here: give its own folder."
    ]


def _runs_of(registered: Registration, folder: Path, runs: Sequence[Run]) -> list[Run]:
    name = registered.study
    return [run for run in runs if run.study.table == name and folder in run.folder.parents]


def _carries(registered: Registration, runs: Sequence[Run]) -> bool:
    return any(run.study.registration == registered.digest for run in runs)


def adherence(registered: Registration, runs: Iterable[Run]) -> Adherence:
    """Compare runs with a registration: their settings, rates, seeds, and the choice of rates.

    Args:
      runs: those of the study.
    """
    cells, found, own = defaultdict[tuple[str, str], list[Run]](list), _Found(), tuple(runs)
    for run in own:
        if said := _departure(registered, run):
            found.depart(f"{run.folder}: {said}", [run])
        else:
            cells[run.study.column, run.study.row].append(run)
    for task, rows in registered.cells.items():
        once = {row: list(_once(cells[task, row], found)) for row in rows}
        _compare(registered, task, once, found)
    cells_with_runs = sum(map(len, registered.cells.values())) - len(found.untrained)
    return Adherence(
        registered,
        departures=tuple(found.departures),
        missing=tuple(found.missing),
        untrained=tuple(found.untrained),
        edges=tuple(found.edges),
        counted=tuple(found.counted),
        left_out=tuple(found.left_out),
        planned=cells_with_runs * len(registered.protocol.seeds),
        runs=tuple(run for run in own if run.study.registration == registered.digest),
    )


@dataclasses.dataclass(frozen=True)
class _Found:
    """The lists of an `Adherence`, as they are filled."""

    departures: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    untrained: list[str] = dataclasses.field(default_factory=list)
    edges: list[str] = dataclasses.field(default_factory=list)
    counted: list[Run] = dataclasses.field(default_factory=list)
    left_out: list[Run] = dataclasses.field(default_factory=list)

    def depart(self, said: str, runs: Sequence[Run]) -> None:
        self.departures.append(said)
        self.left_out.extend(runs)


def _once(runs: Sequence[Run], found: _Found) -> Iterator[Run]:
    """Each run of a cell once; failed ones are trained again, so they are left out.

    If a seed has two runs with two ends or scores, who chose one would choose a result: none
    counts.
    """
    same = defaultdict[tuple[bool, float, int], list[Run]](list)
    for run in runs:
        if run.record.status in ENDED:
            rate = run.config.optimizer.learning_rate
            same[_final(run), rate, run.record.seed].append(run)
    for (*_, seed), own in same.items():
        ends = [(r.record.status, r.record.metrics_best, r.record.metrics_last) for r in own]
        if any(each != ends[0] for each in ends):
            both = " and ".join(f"{run.folder} ({run.record.status})" for run in own)
            found.depart(f"seed {seed} was run more than once: {both}", own)
        else:
            yield own[0]


def _departure(registered: Registration, run: Run) -> str:
    """How a run by itself differs from all that is registered; empty if it does not."""
    protocol, seed = registered.protocol, run.record.seed
    planned = registered.cells.get(run.study.column, {}).get(run.study.row)
    if planned is None:
        return f"{run.study.row} on {run.study.column} is not registered"
    if run.study.registration != registered.digest:
        return "it does not carry the digest of the registration"
    if cell_digest(run.config) != planned.settings:
        return f"its settings are not those registered for {run.study.row}"
    budget = registered.budgets.get(run.study.column)
    if budget is not None and run.record.metric != budget.metric:
        return f"its metric is {run.record.metric}, not {budget.metric}"
    if run.config.data.validation not in (0, protocol.tuning.held_out):
        return f"it holds out {run.config.data.validation} examples"
    if seed not in (protocol.tuning.seeds if run.config.data.validation else protocol.seeds):
        return f"seed {seed} is not registered"
    if run.config.data.draw != seed:
        return f"its examples are draw {run.config.data.draw}, not that of seed {seed}"
    if _place(planned, registered.protocol.rates.per_decade, run) is None:
        return f"learning rate {run.config.optimizer.learning_rate:g} is not in the grid"
    return ""


def _place(planned: Planned, per_decade: int, run: Run) -> int | None:
    rate = run.config.optimizer.learning_rate
    if not rate > 0:
        return None
    place = round(math.log10(rate / planned.middle) * per_decade)
    return place if rate_at(planned.middle, place, per_decade) == rate else None


def _compare(
    registered: Registration, task: str, cells: Mapping[str, Sequence[Run]], found: _Found
) -> None:
    """Follow the rule for rates on one task, and note what differs or is not there."""
    protocol, planned = registered.protocol, registered.cells[task]
    tried: dict[str, dict[int, dict[int, Run]]] = {}
    for row, runs in cells.items():
        tried[row] = defaultdict(dict)
        for run in runs:
            if run.config.data.validation:
                place = _place(planned[row], protocol.rates.per_decade, run)
                assert place is not None
                tried[row][place][run.record.seed] = run
    places = first_places(protocol.rates)
    while True:
        untried = {row: _untried(tried[row], places, protocol.tuning.seeds) for row in cells}
        if any(untried.values()):
            lost = {row: count for row, count in untried.items() if count}
            found.missing.extend(f"{r} on {task}: {n} of its tuning runs" for r, n in lost.items())
            if done := {row: own for row, runs in cells.items() if (own := _finals(runs))}:
                said = f"{', '.join(done)} on {task}: scored before all were tuned"
                found.depart(said, [run for own in done.values() for run in own])
            return
        best = {row: best_place(_records(tried[row], places)) for row in cells}
        known = [place for place in best.values() if place is not None]
        if (more := grown(places, known, protocol.rates)) == places:
            break
        places = more
    for row, runs in cells.items():
        where, place = f"{row} on {task}", best[row]
        if beyond := sorted(tried[row].keys() - set(places)):
            said = f"{where}: {len(beyond)} more rates than the rule gives"
            found.depart(said, [run for each in beyond for run in tried[row][each].values()])
        right, wrong = [], []
        for run in _finals(runs):
            own = _place(planned[row], protocol.rates.per_decade, run)
            (right if own == place else wrong).append(run)
        if wrong:
            found.depart(f"{where}: {len(wrong)} runs without the best rate", wrong)
        if place is None:
            found.untrained.append(where)
        elif lost := len(set(protocol.seeds) - {run.record.seed for run in right}):
            found.missing.append(f"{where}: {lost} of {len(protocol.seeds)} seeds")
        if len(places) > 1 and place in (min(places), max(places)):
            found.edges.append(f"{where}: the {'lowest' if place == min(places) else 'highest'}")
        found.counted.extend(right)


def _final(run: Run) -> bool:
    return not run.config.data.validation


def _finals(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if _final(run)]


def _untried(
    tried: Mapping[int, Mapping[int, Run]], places: Sequence[int], seeds: Sequence[int]
) -> int:
    return sum(seed not in tried.get(place, {}) for place in places for seed in seeds)


def _records(
    tried: Mapping[int, Mapping[int, Run]], places: Sequence[int]
) -> dict[int, list[Record]]:
    return {place: [run.record for run in tried[place].values()] for place in places}
