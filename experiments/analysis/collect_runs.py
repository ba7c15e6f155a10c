"""Select the runs of a table's cells, compare their settings, and summarise scores."""

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from scipy import stats

from configs.settings import RunConfig, fields_of, free_names
from experiments.analysis import draws
from experiments.analysis.recorded_runs import Run
from experiments.plurals import agree, count
from lora_jax.files.canonical_json import canonical


@dataclasses.dataclass(frozen=True)
class Collected:
    """The runs of a table, each once, and notes on them and on the runs that were left out."""

    runs: tuple[Run, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The median or mean of several runs, their spread (None for one run), and their number.

    Runs that share a draw of the examples are one, with their mean (`draws`).
    """

    centre: float
    spread: float | None
    n: int


def collect(runs: Iterable[Run], table: str, size: str = "full") -> Collected:
    """The runs of a table.

    Runs of another size, runs on held-out training examples, failed runs with other settings than
    the completed ones, and copies are left out; the notes count them.

    Raises:
      ValueError: runs of a cell differ in more than seed and draw, or a run has two different
        results.
    """
    own = [run for run in runs if run.study.table == table]
    sized = [run for run in own if run.study.size == size]
    kept = [run for run in sized if not run.held_out]
    cells: dict[tuple[str, str, str], list[Run]] = {}
    for run in kept:
        cells.setdefault(run.place, []).append(run)
    single: list[Run] = []
    strays = 0
    for each in cells.values():
        alike = without_strays(each, lambda run: settings_of(run.config))
        _alike(alike)
        single += one_of_each(alike)
        strays += len(each) - len(alike)
    notes = [
        left_out(len(own) - len(sized), "of another size"),
        left_out(len(sized) - len(kept), "validated on a part of the training examples"),
        left_out(strays, "not completed, and with other settings than the completed ones"),
        left_out(len(kept) - strays - len(single), "copies or earlier attempts of others"),
    ]
    notes.append(_of_draws(single))
    for run in single:
        if not run.completed:
            what = ", ".join(run.place) + f", seed {run.record.seed}"
            why = f": {run.record.note}" if run.record.note else ""
            notes.append(f"{run.record.status}: {what}{why}")
    return Collected(tuple(single), tuple(filter(None, notes)))


def _of_draws(runs: Iterable[Run]) -> str:
    """A note on cells with several runs of one of their draws; empty if there are none."""
    numbers: dict[tuple[str, str, str], list[draws.Number]] = {}
    for run in runs:
        if run.completed:
            numbers.setdefault(run.place, []).append(run.number)
    if not (several := sum(map(draws.are_shared, numbers.values()))):
        return ""
    return (
        f"{count(several, 'cell')} {agree(several, 'has', 'have')} several runs of one draw of the "
        "training examples: each draw counts once in (n), with the mean of its runs"
    )


def elsewhere(runs: Iterable[Run], size: str) -> str:
    """The end of an error message: the number of completed runs of other sizes, or nothing."""
    completed = [run.study.size for run in runs if run.completed]
    sizes = Counter(other for other in completed if other != size)
    said = [f"{count(number, 'run')} of --size={other}" for other, number in sorted(sizes.items())]
    return f"; there {agree(sizes.total(), 'is', 'are')} {', '.join(said)}" * bool(said)


def left_out(number: int, why: str) -> str:
    """A note on runs that are left out; empty if there are none."""
    return f"{count(number, 'run')} left out: {why}" if number else ""


def without_strays(runs: Sequence[Run], settings: Callable[[Run], Mapping[str, str]]) -> list[Run]:
    """The runs without incomplete ones whose settings no completed run has."""
    done = [settings(run) for run in runs if run.completed]
    return [run for run in runs if run.completed or not done or settings(run) in done]


def _alike(runs: Sequence[Run]) -> None:
    """Raise a ValueError if runs of a cell differ in settings, weights or data."""
    first, settings = runs[0], settings_of(runs[0].config)
    for run in runs[1:]:
        if key := different(settings, settings_of(run.config)):
            raise ValueError(f"{first.folder} and {run.folder} are runs of one cell, but {key}")
        require_same_weights(first, run)
        same_draw = run.number[1] == first.number[1]
        if same_draw and run.record.data_digest != first.record.data_digest:
            raise ValueError(f"{first.folder} and {run.folder} were trained on different data")


def different(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """What is wrong with the first setting that differs, with its name; empty if none does."""
    for key in sorted({**one, **other}):
        if one.get(key) != other.get(key):
            ours, theirs = one.get(key, "absent"), other.get(key, "absent")
            return f"{key} is {ours} in one and {theirs} in the other"
    return ""


def require_same_weights(one: Run, other: Run) -> None:
    """Raise a ValueError if two runs did not begin from the same weights."""
    if one.record.weights_digest != other.record.weights_digest:
        raise ValueError(f"{one.folder} and {other.folder} began from different weights")


def settings_of(config: RunConfig) -> dict[str, str]:
    """Every setting that affects a result, except seed and draw, as text by name.

    Settings that a config may lack, and those of a variant, mean the same as null: these are left
    out.
    """
    free = free_names(type(config))
    optional = {n for n, (f, _) in fields_of(type(config)).items() if f.metadata.get("optional")}

    def absent(value: Any, where: str) -> bool:
        return value is None and (where in optional or where.startswith("variant."))

    def leaves(value: Any, where: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping) and value:
            for key, item in value.items():
                yield from leaves(item, f"{where}.{key}" if where else key)
        elif where == "start_from":  # only whether it starts from a run matters
            yield where, "a run" if value else "null"
        elif where not in free and not absent(value, where):
            yield where, canonical(value)

    return dict(leaves(config.plain, ""))


def one_of_each(runs: Sequence[Run]) -> list[Run]:
    """The runs of a cell, one for each seed and draw, a completed one if there is one.

    Raises:
      ValueError: two runs to the end, or until they diverged, with the same seed and draw have
        different results.
    """
    chosen: dict[tuple[int, int], Run] = {}
    order = {"completed": 0, "diverged": 1}
    for run in sorted(runs, key=lambda r: (order.get(r.record.status, 2), str(r.folder))):
        first = chosen.setdefault(run.number, run)
        ended = [r.record for r in (first, run) if r.record.status in ("completed", "diverged")]
        results = [(r.status, r.metrics_best, r.metrics_last) for r in ended]
        if results[1:] and results[0] != results[1]:
            raise ValueError(
                f"{first.folder} and {run.folder} are the same run (seed {run.record.seed}) with "
                f"different results ({first.record.status}, {run.record.status})"
                f"{_starts(first.config, run.config)}: keep one"
            )
    return [chosen[number] for number in sorted(chosen)]


def _starts(one: RunConfig, other: RunConfig) -> str:
    """What two runs started from, where that differs; empty where it does not."""
    if one.start_from == other.start_from:
        return ""
    return f", as start_from is {one.start_from} in one and {other.start_from} in the other"


def summarise(scores: Sequence[float], report: str, spread: str) -> Summary:
    """The median or mean of scores, and their spread.

    Args:
      scores: of independent runs (`draws.means`).
      report: `median` or `mean`.
      spread: `sd`, the sample standard deviation, or `ci95`, half the width of the 95% confidence
        interval of the mean (Student's t).
    """
    centre = statistics.median(scores) if report == "median" else statistics.fmean(scores)
    n = len(scores)
    if n < 2:
        return Summary(centre, None, n)
    deviation = statistics.stdev(scores)
    if spread == "ci95":
        deviation *= float(stats.t.ppf(0.975, n - 1)) / math.sqrt(n)
    return Summary(centre, deviation, n)


def statuses(runs: Iterable[Run]) -> dict[str, int]:
    """The number of runs that did not complete, by status."""
    return dict(Counter(run.record.status for run in runs if not run.completed))
