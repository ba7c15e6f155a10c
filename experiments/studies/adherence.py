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
from experiments.studies.registration import Registration
from experiments.studies.training import ENDED, cell_digest


@dataclasses.dataclass
class Adherence:
    """What differs from the registration, and what has not been run, a line for each."""

    registered: Registration
    runs: Sequence[Run]
    """All runs that carry the digest of the registration, those that chose rates, too."""
    folder: Path | None = None
    """Where the study is registered."""
    departures: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    untrained: list[str] = dataclasses.field(default_factory=list)
    """Methods that no learning rate trained to the end: they have no scored run, and need none."""
    edges: list[str] = dataclasses.field(default_factory=list)
    """Methods whose best rate is the last that the rule allows: a better one may lie beyond it."""
    counted: list[Run] = dataclasses.field(default_factory=list)
    """The scored runs that are as registered, with the rate that the rule chooses."""
    left_out: list[Run] = dataclasses.field(default_factory=list)
    """The runs that are not as registered, which departures are about."""

    @property
    def followed(self) -> bool:
        """Whether all runs are as registered; some may not have been run yet."""
        return not self.departures

    @property
    def planned(self) -> int:
        """How many scored runs there are when the study is complete."""
        cells = sum(map(len, self.registered.cells.values())) - len(self.untrained)
        return cells * len(self.registered.protocol.seeds)

    def depart(self, said: str, runs: Iterable[Run]) -> None:
        """Note what differs, and leave these runs out."""
        self.departures.append(said)
        self.left_out.extend(runs)


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
        registered, home = registration.read(path.parent), path.parent
        assert registered is not None
        first = places.setdefault(registered.digest, home)
        if first in home.parents:
            continue
        if first != home:
            raise ValueError(
                f"{first} and {home} have the same study: give one of them (--results)"
            )
        own, others = (
            [
                run
                for run in each
                if run.study.table == registered.study and home in run.folder.parents
            ]
            for each in (runs, every)
        )
        carry = [
            any(run.study.registration == registered.digest for run in each)
            for each in (own, others)
        ]
        if carry[0] or not carry[1]:
            found.append(adherence(registered, own, home))
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


def adherence(registered: Registration, runs: Iterable[Run], home: Path | None = None) -> Adherence:
    """Compare runs with a registration: their settings, rates, seeds, and the choice of rates.

    Args:
      runs: those of the study.
      home: the folder of the registration.
    """
    every, cells = tuple(runs), defaultdict[tuple[str, str], list[Run]](list)
    own = [run for run in every if run.study.registration == registered.digest]
    found = Adherence(registered, own, home)
    for run in every:
        if said := _departure(registered, run):
            found.depart(f"{run.folder}: {said}", [run])
        else:
            cells[run.study.column, run.study.row].append(run)
    for task, rows in registered.cells.items():
        _compare(found, task, {row: list(_once(cells[task, row], found)) for row in rows})
    return found


def _once(runs: Sequence[Run], found: Adherence) -> Iterator[Run]:
    """Each run of a cell once; failed ones are trained again, so they are left out.

    If a seed has two runs with two ends or scores, who chose one would choose a result: none
    counts.
    """
    same = defaultdict[tuple[int, float, int], list[Run]](list)
    for run in (run for run in runs if run.record.status in ENDED):
        config = run.config
        same[config.data.validation, config.optimizer.learning_rate, run.record.seed].append(run)
    for (*_, seed), own in same.items():
        ends = [(r.record.status, r.record.metrics_best, r.record.metrics_last) for r in own]
        if any(each != ends[0] for each in ends):
            both = " and ".join(f"{run.folder} ({run.record.status})" for run in own)
            found.depart(f"seed {seed} was run more than once: {both}", own)
        else:
            yield own[0]


def _departure(registered: Registration, run: Run) -> str:
    """How a run by itself differs from all that is registered; empty if it does not."""
    protocol, seed, study = registered.protocol, run.record.seed, run.study
    planned = registered.cells.get(study.column, {}).get(study.row)
    if planned is None:
        return f"{study.row} on {study.column} is not registered"
    data, metric = run.config.data, run.record.metric
    budget = registered.budgets.get(study.column)
    seeds = protocol.tuning.seeds if data.validation else protocol.seeds
    wrong = {
        "it does not carry the digest of the registration": (
            study.registration != registered.digest
        ),
        f"its settings are not those registered for {study.row}": (
            cell_digest(run.config) != planned.settings
        ),
        f"its metric is {metric}, not {budget and budget.metric}": (
            budget is not None and metric != budget.metric
        ),
        f"it holds out {data.validation} examples": (
            data.validation not in (0, protocol.tuning.held_out)
        ),
        f"seed {seed} is not registered": seed not in seeds,
        f"its examples are draw {data.draw}, not that of seed {seed}": data.draw != seed,
        f"learning rate {run.config.optimizer.learning_rate:g} is not in the grid": (
            _place(registered, run) is None
        ),
    }
    return next((said for said, is_so in wrong.items() if is_so), "")


def _place(registered: Registration, run: Run) -> int | None:
    """Where the rate of a run is in the grid; None if it is not there."""
    rate = run.config.optimizer.learning_rate
    middle = registered.cells[run.study.column][run.study.row].middle
    per_decade = registered.protocol.rates.per_decade
    place = round(math.log10(rate / middle) * per_decade) if rate > 0 else 0
    return place if rate_at(middle, place, per_decade) == rate else None


def _compare(found: Adherence, task: str, cells: Mapping[str, Sequence[Run]]) -> None:
    """Follow the rule for rates on one task, and note what differs or is not there."""
    protocol = found.registered.protocol
    tried = {row: defaultdict[int | None, dict[int, Run]](dict) for row in cells}
    finals = {
        row: [run for run in runs if not run.config.data.validation] for row, runs in cells.items()
    }
    for row, runs in cells.items():
        for run in runs:
            if run.config.data.validation:
                tried[row][_place(found.registered, run)][run.record.seed] = run
    places = first_places(protocol.rates)
    while True:
        wanted = [(place, seed) for place in places for seed in protocol.tuning.seeds]
        untried = {
            row: sum(seed not in own.get(place, ()) for place, seed in wanted)
            for row, own in tried.items()
        }
        if any(untried.values()):
            found.missing += [
                f"{row} on {task}: {number} of its tuning runs"
                for row, number in untried.items()
                if number
            ]
            if done := {row: own for row, own in finals.items() if own}:
                said = f"{', '.join(done)} on {task}: scored before all were tuned"
                found.depart(said, [run for own in done.values() for run in own])
            return
        best = {
            row: best_place({at: [run.record for run in own[at].values()] for at in places})
            for row, own in tried.items()
        }
        known = [place for place in best.values() if place is not None]
        if (more := grown(places, known, protocol.rates)) == places:
            break
        places = more
    for row, place in best.items():
        where = f"{row} on {task}"
        if beyond := [own for at, own in tried[row].items() if at not in places]:
            said = f"{where}: {len(beyond)} more rates than the rule gives"
            found.depart(said, [run for own in beyond for run in own.values()])
        right, wrong = [], []
        for run in finals[row]:
            own = _place(found.registered, run)
            (right if own == place else wrong).append(run)
        if wrong:
            found.depart(f"{where}: {len(wrong)} runs without the best rate", wrong)
        if place is None:
            found.untrained.append(where)
        elif lost := len(set(protocol.seeds) - {run.record.seed for run in right}):
            found.missing.append(f"{where}: {lost} of {len(protocol.seeds)} seeds")
        if len(places) > 1 and place in (places[0], places[-1]):
            found.edges.append(f"{where}: the {'lowest' if place == places[0] else 'highest'}")
        found.counted.extend(right)
