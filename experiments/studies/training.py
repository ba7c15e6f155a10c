"""Train what a study's protocol says, task by task: choose each method's rate, then run its seeds.

    WORKDIR/TASK/tuning/METHOD/RATE/SEED    scored on held-out training examples
    WORKDIR/TASK/runs/METHOD/SEED           with the best rate, scored on the development set

Runs that have ended are left as they are, so a study that was stopped goes on from there.
"""

import dataclasses
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from configs.settings import RunConfig
from experiments.analysis.recorded_runs import settings_of
from experiments.runs.announce import TooManyTrialsError
from experiments.runs.group_folder import GroupFolder
from experiments.runs.run_options import USUAL, RunOptions
from experiments.studies import protocol
from experiments.studies.protocol import Protocol
from experiments.studies.registration import Planned
from experiments.sweeps import jobs
from experiments.sweeps.grouping import groups
from lora_jax.files import json_text
from lora_jax.files.json_text import config_digest
from lora_jax.records import run_record

Config = Callable[..., RunConfig]
"""`config(**changes)` gives a cell's settings with changes such as `data__validation=400`."""
Say = Callable[[str], None]
ENDED = USUAL.final
"""The states of runs that are results of their settings: a failed run is trained again."""
NO_RATE = "no learning rate trained to the end with each seed"
AT_ONCE = 10
"""The most runs in one program: what a killed study loses at most."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method on a task."""

    task: str
    row: str
    config: Config
    middle: float
    """The middle of the method's learning rates."""

    @property
    def planned(self) -> Planned:
        return Planned(cell_digest(self.config()), self.middle)


def cell_digest(config: RunConfig) -> str:
    """The digest of a run's settings but for its rate, seed, draw and held-out examples."""
    own = ("optimizer.learning_rate", "data.validation")
    kept = {key: value for key, value in settings_of(config).items() if key not in own}
    return config_digest(kept)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """How the runs of a study are trained."""

    workdir: Path
    protocol: Protocol
    how: RunOptions = USUAL
    adapters: bool = True
    """Whether adapters stay; records and predictions always do."""
    begin: Callable[[], None] = lambda: None
    """Called before each program that trains (`experiments.runs.interruption`)."""
    say: Say = print

    def task(self, cells: Sequence[Cell], only: Sequence[str] = ()) -> None:
        """Train all cells of one task, or of some methods (`only`).

        The rate of a method is known when those of all methods are, as one may need more of them.
        Runs of some methods alone stop there if the others have not been tuned.
        """
        wanted = [cell for cell in cells if not only or cell.row in only]
        places = protocol.first_places(self.protocol.rates)
        while True:
            for cell in wanted:
                self.tune(cell, places)
            tried = {cell.row: self.tried(cell, places) for cell in cells}
            if missing := [row for row, found in tried.items() if found is None]:
                self.say(f"{cells[0].task}: {', '.join(missing)} must be tuned before seeds run")
                return
            best = {row: protocol.best_place(found) for row, found in tried.items() if found}
            chosen = {row: place for row, place in best.items() if place is not None}
            if (more := protocol.grown(places, chosen.values(), self.protocol.rates)) == places:
                break
            self.say(f"{cells[0].task}: a best rate lies at an edge, so all methods get one more")
            places = more
        for cell in wanted:
            if cell.row in chosen:
                place, per_decade = chosen[cell.row], self.protocol.rates.per_decade
                self.seeds(cell, protocol.rate_at(cell.middle, place, per_decade))
            else:
                self.say(f"{cell.row} on {cell.task}: {NO_RATE}, so it has no scored runs")

    def tune(self, cell: Cell, places: Sequence[int]) -> None:
        """Train a method with each rate and each tuning seed, scored on held-out examples."""
        held_out = {"data__validation": self.protocol.tuning.held_out}
        configs = {
            f"{rate:g}/{seed}": cell.config(
                optimizer__learning_rate=rate, seed=seed, data__draw=seed, **held_out
            )
            for rate in self._rates(cell, places)
            for seed in self.protocol.tuning.seeds
        }
        self._train(configs, self.workdir / cell.task / "tuning" / cell.row, _mean)

    def tried(self, cell: Cell, places: Sequence[int]) -> dict[int, list[run_record.Record]] | None:
        """The records of each place; None if a rate has not been tried with each seed."""
        tried: dict[int, list[run_record.Record]] = {}
        for place, rate in zip(places, self._rates(cell, places), strict=True):
            folder = self.workdir / cell.task / "tuning" / cell.row / f"{rate:g}"
            found = [run_record.read(folder / str(seed)) for seed in self.protocol.tuning.seeds]
            tried[place] = [each for each in found if each is not None and each.status in ENDED]
            if len(tried[place]) < len(found):
                return None
        return tried

    def seeds(self, cell: Cell, rate: float) -> None:
        """Train a method with its best rate and every seed, scored on the development set."""
        configs = {
            str(seed): cell.config(optimizer__learning_rate=rate, seed=seed, data__draw=seed)
            for seed in self.protocol.seeds
        }
        # Whoever sees scores before a study is complete can stop where they please.
        self._train(configs, self.workdir / cell.task / "runs" / cell.row, lambda _: "done")

    def _rates(self, cell: Cell, places: Sequence[int]) -> list[float]:
        per_decade = self.protocol.rates.per_decade
        return [protocol.rate_at(cell.middle, place, per_decade) for place in places]

    def _train(
        self,
        configs: Mapping[str, RunConfig],
        folder: Path,
        said: Callable[[Sequence[run_record.Record]], str],
    ) -> None:
        """Train runs, each in a folder of its name; runs that share a program train together.

        Runs that do not fit into memory together train as two programs, one after the other.

        Args:
          said: what to say of the records of a program.
        """
        programs = _programs(configs)
        while programs:
            mine = programs.pop(0)
            own, folders = [configs[name] for name in mine], [folder / name for name in mine]
            for config, each in zip(own, folders, strict=True):
                if _of_another(each, config):
                    run_record.claim(each, config.plain)  # it says what differs
            if all(_ended(each) for each in folders):
                continue
            if _begun_apart(mine, configs, folder):
                programs[:0] = _halves(mine)
                continue
            self.begin()
            results = jobs.train(own, folders, mine, self.how)
            errors = [each for each in results if isinstance(each, Exception)]
            if refused := [each for each in errors if isinstance(each, TooManyTrialsError)]:
                home = GroupFolder.of(own, folders)
                if home.has_steps:
                    raise ValueError(
                        f"{home.path} has checkpoints of these {len(mine)} runs, which do not fit "
                        f"into memory now ({refused[0]}): free memory and give the same command "
                        "again, or delete that folder to train them apart from the start"
                    )
                home.remove()
                self.say(f"{folder}: {len(mine)} runs do not fit into memory at once; halves may")
                programs[:0] = _halves(mine)
                continue
            if errors:
                raise errors[0]
            records = [each for each in results if isinstance(each, run_record.Record)]
            seconds = statistics.fmean(each.seconds_total for each in records)
            self.say(f"{folder}: {len(records)} runs, {said(records)}, {seconds:.0f} s each")
            self._clean(folders)

    def _clean(self, folders: Sequence[Path]) -> None:
        """Remove the adapters and checkpoints of runs that have ended, unless adapters stay."""
        for folder in () if self.adapters else filter(_ended, folders):
            others = (folder / f"{name}.safetensors" for name in ("pruned", "seen"))
            for path in (*folder.glob("adapter*.safetensors"), *others):
                path.unlink(missing_ok=True)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _programs(configs: Mapping[str, RunConfig]) -> list[list[str]]:
    """The names of the runs that train in each program."""
    names = list(configs)
    parts = [[names[number] for number in part] for part in groups(list(configs.values()))]
    return [part[at : at + AT_ONCE] for part in parts for at in range(0, len(part), AT_ONCE)]


def _halves(names: list[str]) -> list[list[str]]:
    return [names[: len(names) // 2], names[len(names) // 2 :]]


def _begun_apart(names: list[str], configs: Mapping[str, RunConfig], folder: Path) -> bool:
    """Whether a half of these runs, or a part of one, has checkpoints of its own.

    It has them only if these runs did not fit into memory together. Trained together now, they
    could not use them.
    """
    if len(names) == 1:
        return False
    for half in _halves(names):
        mine = [configs[name] for name in half], [folder / name for name in half]
        alone = len(half) == 1 and (folder / half[0] / "checkpoints").exists()
        if alone or GroupFolder.of(*mine).trials or _begun_apart(half, configs, folder):
            return True
    return False


def _of_another(folder: Path, config: RunConfig) -> bool:
    """Whether a folder has a run of another study, or of none."""
    path = folder / "config.json"
    if not path.exists():
        return False
    there = json_text.read_object(path).get("study") or {}
    return there.get("registration", "") != config.study.registration


def _ended(folder: Path) -> bool:
    record = run_record.read(folder) if folder.exists() else None
    return record is not None and record.status in ENDED


def _mean(results: Sequence[run_record.Record]) -> str:
    scores = protocol.saved_scores(results)
    return f"mean {results[0].metric} {statistics.fmean(scores):.4f}" if scores else "no score"
