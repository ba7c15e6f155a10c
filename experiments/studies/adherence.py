"""Say whether the runs of a study are those that were registered."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from experiments.analysis.recorded_runs import Run
from experiments.studies import rates
from experiments.studies.registration import Planned, Registration
from experiments.studies.training import ENDED, NO_RATE, cell_digest
from lora_jax.records.run_record import Record


@dataclasses.dataclass(frozen=True)
class Adherence:
    """What differs from the registration, and what has not been run, a line for each."""

    departures: tuple[str, ...]
    missing: tuple[str, ...]
    edges: tuple[str, ...]
    """Methods whose best rate is the last that the rule allows: a better one may lie beyond it."""
    counted: tuple[Run, ...]
    """The scored runs that are as registered, with the rate that the rule chooses."""
    planned: int
    """How many scored runs there are when the study is complete."""

    @property
    def followed(self) -> bool:
        """Whether all runs are as registered; some may not have been run yet."""
        return not self.departures


def adherence(registered: Registration, runs: Iterable[Run]) -> Adherence:
    """Compare runs with a registration: their settings, rates, seeds, and the choice of rates.

    Args:
      runs: those of the study.
    """
    cells, found = defaultdict[tuple[str, str], list[Run]](list), _Found()
    for run in runs:
        if said := _departure(registered, run):
            found.departures.append(f"{run.folder}: {said}")
        elif run.record.status in ENDED:  # a failed run is trained again
            cells[run.study.column, run.study.row].append(run)
    for task, rows in registered.cells.items():
        _compare(registered, task, {row: cells[task, row] for row in rows}, found)
    return Adherence(
        departures=tuple(found.departures),
        missing=tuple(found.missing),
        edges=tuple(found.edges),
        counted=tuple(found.counted),
        planned=sum(map(len, registered.cells.values())) * len(registered.protocol.seeds),
    )


@dataclasses.dataclass(frozen=True)
class _Found:
    """The lists of an `Adherence`, as they are filled."""

    departures: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    edges: list[str] = dataclasses.field(default_factory=list)
    counted: list[Run] = dataclasses.field(default_factory=list)


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
    place = round(math.log10(rate / planned.middle) * per_decade)
    return place if rates.rate(planned.middle, place, per_decade) == rate else None


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
    places = rates.first(protocol.rates)
    while True:
        untried = {row: _untried(tried[row], places, protocol.tuning.seeds) for row in cells}
        if any(untried.values()):
            lost = {row: count for row, count in untried.items() if count}
            found.missing.extend(f"{r} on {task}: {n} of its tuning runs" for r, n in lost.items())
            if done := [row for row, runs in cells.items() if any(map(_final, runs))]:
                said = f"{', '.join(done)} on {task}: scored before all were tuned"
                found.departures.append(said)
            return
        best = {row: rates.best_place(_records(tried[row], places)) for row in cells}
        known = [place for place in best.values() if place is not None]
        if (more := rates.grown(places, known, protocol.rates)) == places:
            break
        places = more
    for row, runs in cells.items():
        where, place = f"{row} on {task}", best[row]
        if beyond := tried[row].keys() - set(places):
            found.departures.append(f"{where}: {len(beyond)} more rates than the rule gives")
        final = [run for run in runs if _final(run)]
        right = [r for r in final if _place_of(planned[row], registered, r) == place]
        if len(right) < len(final):
            wrong = len(final) - len(right)
            found.departures.append(f"{where}: {wrong} runs without the best rate")
        if place is None:
            found.missing.append(f"{where}: {NO_RATE}")
        elif lost := len(set(protocol.seeds) - {run.record.seed for run in right}):
            found.missing.append(f"{where}: {lost} of {len(protocol.seeds)} seeds")
        if len(places) > 1 and place in (min(places), max(places)):
            found.edges.append(f"{where}: the {'lowest' if place == min(places) else 'highest'}")
        found.counted.extend(right)


def _place_of(planned: Planned, registered: Registration, run: Run) -> int | None:
    return _place(planned, registered.protocol.rates.per_decade, run)


def _final(run: Run) -> bool:
    return not run.config.data.validation


def _untried(
    tried: Mapping[int, Mapping[int, Run]], places: Sequence[int], seeds: Sequence[int]
) -> int:
    return sum(seed not in tried.get(place, {}) for place in places for seed in seeds)


def _records(
    tried: Mapping[int, Mapping[int, Run]], places: Sequence[int]
) -> dict[int, list[Record]]:
    return {place: [run.record for run in tried[place].values()] for place in places}
