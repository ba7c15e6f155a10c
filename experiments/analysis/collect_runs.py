"""Select the runs that belong together, refuse those that cannot, and summarise their scores.

Runs that share a draw of the training examples are not independent: each draw counts once, with the
mean of its runs. Runs of one contest may differ in what a study varies, and in nothing else.
"""

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from configs.settings import COMBINED, IMPORTED, fields_of
from experiments.analysis.labels import natural
from experiments.analysis.recorded_runs import REGISTRATION, Run, Unfinished, find_unfinished
from lora_jax.messages import agree, count, require_known

RunNumber = tuple[int, int]
"""A run's seed and its draw of the examples (`recorded_runs.Run.number`)."""


def runs_by_draw(numbers: Iterable[RunNumber]) -> list[list[RunNumber]]:
    """The numbers in groups that count once: those of a draw, or each, if they have one draw."""
    by_draw: dict[int, list[RunNumber]] = {}
    for number in sorted(numbers):
        by_draw.setdefault(number[1], []).append(number)
    found = list(by_draw.values())
    return found if len(found) > 1 else [[number] for own in found for number in own]


def means_of_draws(values: Mapping[RunNumber, Any]) -> np.ndarray:
    """The mean of each group's values, numbers or arrays, (groups, ...)."""
    return np.array([np.mean([values[n] for n in own], axis=0) for own in runs_by_draw(values)])


def share_draws(numbers: Collection[RunNumber]) -> bool:
    """Whether several runs count as one, as they share a draw."""
    return len(runs_by_draw(numbers)) < len(numbers)


def draws_share_seeds(numbers: Collection[RunNumber]) -> bool:
    """Whether several draws have a seed in common, so that nothing is found of new seeds."""
    return len({seed for seed, _ in numbers}) < len(numbers)


@dataclasses.dataclass(frozen=True)
class Collected:
    """The runs of a table, each once, and notes on them and on the runs that were left out."""

    runs: tuple[Run, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The median or mean of several runs, their spread (None for one run), and their number.

    Runs that share a draw of the examples are one, with their mean (`means_of_draws`).
    """

    centre: float
    spread: float | None
    n: int


def collect(
    runs: Iterable[Run], table: str, size: str = "full", settings_apart: bool = False
) -> Collected:
    """The runs of a table.

    Runs of another size, runs on held-out training examples, failed runs with other settings than
    the completed ones, and copies are left out; the notes count them.

    Args:
      settings_apart: whether a cell may have several settings, as in a sweep.

    Raises:
      ValueError: runs of a cell differ in more than seed and draw, or a run has two different
        results.
    """
    every = [run for run in runs if run.study.table == table]
    sized = [run for run in every if run.study.size == size]
    kept = [run for run in sized if not run.held_out]
    cells: dict[tuple[Any, ...], list[Run]] = {}
    for run in kept:
        settings = tuple(run.settings.items()) if settings_apart else ()
        cells.setdefault((run.place, settings), []).append(run)
    single: list[Run] = []
    strays = shared = 0
    for each in cells.values():
        alike = without_strays(each, lambda run: run.settings)
        _alike(alike)
        own = one_of_each(alike)
        single += own
        strays += len(each) - len(alike)
        shared += share_draws([run.number for run in own if run.completed])
    notes = [
        left_out(len(every) - len(sized), "of another size"),
        left_out(len(sized) - len(kept), "validated on a part of the training examples"),
        left_out(strays, "not completed, and with other settings than the completed ones"),
        left_out(len(kept) - strays - len(single), "copies or earlier attempts of others"),
    ]
    if shared:
        notes.append(
            f"{count(shared, 'cell')} {agree(shared, 'has', 'have')} several runs of one draw of "
            "the training examples: each draw counts once in (n), with the mean of its runs"
        )
    for run in single:
        if not run.completed:
            what = ", ".join(run.place) + f", seed {run.record.seed}"
            why = f": {run.record.note}" if run.record.note else ""
            notes.append(f"{run.record.status}: {what}{why}")
    return Collected(tuple(single), tuple(filter(None, notes)))


def none_completed(results: Path, found: Sequence[Run], size: str) -> str:
    """The error message of a folder without a completed run of this size: what it has instead."""
    lost = find_unfinished(results)
    if not found and not lost:
        return f"--results {results} has no runs: name the --workdir of a run or a sweep"
    failed = [run.record.status for run in found if not run.completed]
    number = Counter([*failed, *(run.status for run in lost)])
    said = ", ".join(f"{n} {status}" for status, n in number.items())
    gone = f" ({said})" * bool(said)
    return f"--results {results}: no run of size {size} has completed{gone}{elsewhere(found, size)}"


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
    first, settings = runs[0], runs[0].settings
    for run in runs[1:]:
        if key := different(settings, run.settings):
            raise ValueError(
                f"{first.folder} and {run.folder} are runs of one cell, but {key} "
                "(experiments.table without --table shows each setting)"
            )
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
                f"different results ({first.record.status}, {run.record.status}): keep one"
            )
    return [chosen[number] for number in sorted(chosen)]


def summarise(scores: Sequence[float], report: str, spread: str) -> Summary:
    """The median or mean of scores, and their spread.

    Args:
      scores: of independent runs (`collect_runs.means_of_draws`).
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


FEWEST_SCORES = 3
"""An interval over seeds needs as many."""
VARIED = ("variant", "optimizer", "quantize", "targets", "also_train")
"""The sections of a config that methods and their settings may vary."""
ALSO_VARIED = ("train.optimizer", "train.ema")
"""Settings of other sections that they may vary, too."""
BESIDE = ("study.row", "data.validation")


def contest_key(run: Run) -> tuple[str, str, str]:
    """The study, the model and the task of a run."""
    if run.study.table:
        return run.study.table, run.trained_model, run.study.column
    return run.record.experiment, run.config.model.name, run.config.data.name


def method_key(run: Run | Unfinished) -> str:
    """The key of a run's method: its row, or without a study its variant and storage."""
    if run.study.table:
        return run.study.row
    name, storage = variant_and_storage(run).values()
    return name if storage == "none" else f"{name}_{storage}"


def variant_and_storage(run: Run | Unfinished) -> dict[str, str]:
    """The names of a run's variant and of its storage, by setting."""
    config: Any = run.config
    return {"variant.name": config.variant.name, "quantize.storage": config.quantize.storage}


def varied_and_fixed(
    run: Run | Unfinished, varies: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Split the settings of a run into those that a study varies, and the fixed ones.

    Args:
      varies: settings that vary besides those.
    """
    varied, fixed = {}, {}
    for key, value in run.settings.items():
        if key.partition(".")[0] in VARIED or key in (*ALSO_VARIED, *varies):
            varied[key] = value
        elif key not in BESIDE:
            fixed[key] = value
    return varied, fixed


def main_metric(task: str, runs: Sequence[Run]) -> str:
    """The main metric of the completed runs of a task; empty if none has completed.

    Raises:
      ValueError: they have several.
    """
    found = {run.record.metric: run.folder for run in runs if run.completed}
    if len(found) > 1:
        said = " and ".join(f"{name} in {where}" for name, where in sorted(found.items()))
        raise ValueError(
            f"{task}: runs have different main metrics, {said}: keep those of each metric in a "
            "folder of their own"
        )
    return next(iter(found), "")


def require_settings_of(names: Sequence[str], runs: Sequence[Run]) -> None:
    """Raise a ValueError if `--varies` has a name that is not a setting of the runs."""
    kinds = {type(run.config) for run in runs}
    known = {name for kind in kinds for name in fields_of(kind)}
    known |= {name for run in runs for name in run.settings}
    for name in names:
        require_known(name, known, f"--varies={name}: no run has this setting")


def require_comparable(runs: Sequence[Run], varies: Sequence[str]) -> None:
    """Raise a ValueError if runs differ in fixed settings, weights or examples.

    Also raise it if two runs of one method differ in variant or storage.
    """
    first = runs[0]
    settings = varied_and_fixed(first, varies)[1]
    firsts: dict[tuple[bool, int], Run] = {}
    methods: dict[str, Run] = {}
    for run in runs:
        if said := different(settings, varied_and_fixed(run, varies)[1]):
            raise ValueError(
                f"{first.folder} and {run.folder} cannot be compared: {said} (if the study varies "
                f"it, add --varies={said.partition(' ')[0]})"
            )
        require_same_weights(first, run)
        same = firsts.setdefault((run.held_out, run.number[1]), run)
        if run.record.data_digest != same.record.data_digest:
            raise ValueError(f"{same.folder} and {run.folder} had different examples")
        other = methods.setdefault(method_key(run), run)
        if said := different(variant_and_storage(other), variant_and_storage(run)):
            raise ValueError(
                f"{other.folder} and {run.folder} use one method, '{method_key(run)}', but {said}"
            )


def select(
    runs: Sequence[Run], table: str | None, size: str, parts: bool = False
) -> tuple[list[Run], list[str]]:
    """The runs of a table and a size, and notes on how many others were left out.

    Combined and imported adapters are left out where others were trained, runs without a study
    where others have one, and runs without a registration where others of their table have one.

    Args:
      table: None for the runs of all tables.
      parts: whether a table may have several registrations. Each needs a folder and tasks of its
        own.

    Raises:
      ValueError: there are no runs of the table, or those of one table are of two registrations.
    """
    known = sorted({name_of(run) for run in runs})
    if table is not None:
        require_known(table, known, f"no runs of --table={table}")
    every = [run for run in runs if table in (None, name_of(run))]
    sized = [run for run in every if run.study.size == size]
    trained = _those(sized, lambda run: run.record.experiment not in (COMBINED, IMPORTED))
    own = _those(trained, lambda run: bool(run.study.table))
    notes = [
        left_out(len(every) - len(sized), "of another size"),
        left_out(len(sized) - len(trained), "combined or imported, so not trained here"),
        left_out(len(trained) - len(own), "of no study, so not mixed into one"),
    ]
    kept: list[Run] = []
    for name in sorted({name_of(run) for run in own}):
        kept += _registered(name, [run for run in own if name_of(run) == name], parts)
    notes.append(left_out(len(own) - len(kept), "of no registration, though their study has one"))
    same = {id(run) for run in kept}
    return [run for run in own if id(run) in same], list(filter(None, notes))


def _registered(table: str, runs: Sequence[Run], parts: bool) -> list[Run]:
    known = _those(runs, lambda run: bool(run.study.registration))
    by_digest: dict[str, list[Run]] = {}
    for run in known:
        by_digest.setdefault(run.study.registration, []).append(run)
    homes = natural(str(_home(own[0].folder)) for own in by_digest.values())
    tasks = [{contest_key(run) for run in own} for own in by_digest.values()]
    apart = sum(map(len, tasks)) == len(set[Any]().union(*tasks))
    registered = all((Path(home) / REGISTRATION).exists() for home in homes)
    own_homes = registered and len(homes) == len(tasks)
    if len(tasks) == 1 or (parts and apart and own_homes):
        return known
    if own_homes:
        how = f": give one of {', '.join(homes)}"
    else:
        folders = " and ".join(str(own[0].folder) for own in list(by_digest.values())[:2])
        own = f"the folder of its own {REGISTRATION}"
        how = f" ({folders}): keep the runs of each in {own}, and give that"
    raise ValueError(f"runs of {table} belong to {len(tasks)} registrations{how} (--results)")


def _home(folder: Path) -> Path:
    """The folder of the study that a run lies in, or its own."""
    return next((each for each in folder.parents if (each / REGISTRATION).exists()), folder)


def _those(runs: Sequence[Run], has: Callable[[Run], bool]) -> list[Run]:
    """The runs that have something, or all if none has it."""
    return [run for run in runs if has(run)] or list(runs)


def name_of(run: Run) -> str:
    return run.study.table or run.record.experiment
