"""Train one run, or several trials as one program; each leaves its files in its own folder.

A run's folder gets metrics, checkpoints, the adapter and, last, the record.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from jax.sharding import Mesh

from configs.settings import RunConfig
from experiments.runs.announce import TooManyTrialsError, announce, describe, passed_over
from experiments.runs.folder_lock import alone_in
from experiments.runs.group_folder import GroupFolder
from experiments.runs.run_options import USUAL, RunOptions
from experiments.runs.training import Order, train
from experiments.setup import from_data, processes
from experiments.setup.config import of_record
from experiments.setup.experiment import Experiment, build
from experiments.setup.load import load, read_texts, with_room
from experiments.setup.out_of_memory import explained, of_a_step, of_loading
from experiments.tracking.tracking import NONE as NO_TRACKERS, Track
from lora_jax.records import run_record
from lora_jax.records.environment import multiplies_bfloat16
from lora_jax.training.masking import share
from lora_jax.training.preemption import preemption

Ended = run_record.Record | Exception
Say = Callable[[str], None]
UNSEALED = "record.json has no seal (of an earlier version): a changed number would not be seen"
"""The message for a completed run whose record cannot be checked for changes."""
MISSING = "a halving has all of its trials or does not begin, and {} is missing: {}"
"""The message for a halving of which a trial cannot be trained, and why."""
NO_GAIN = (
    "config.model.products=bfloat16 rounds, but gains no speed: this machine has neither AMX nor "
    "AMD's AVX512_BF16 nor tensor cores"
)


@dataclasses.dataclass(frozen=True)
class _Trial:
    """The settings of a run, and the folder for its files."""

    config: RunConfig
    folder: Path

    def claim(self) -> None:
        """Write the config into the folder, which all processes must see."""
        processes.first(lambda: run_record.claim(self.folder, self.config.plain))
        if not (self.folder / "config.json").exists():
            raise ValueError(
                f"--workdir {self.folder} is not a folder that the first process sees, too"
            )

    def ended(self, final: Collection[str]) -> run_record.Record | None:
        """The record of a trial that is not trained again; if the first process sees it, all must.

        Raises:
          ValueError: the folder holds another run, or this process does not see that record.
        """
        if not processes.first(lambda: self._record(final) is not None):
            return None
        if (record := self._record(final)) is not None:
            return record
        raise ValueError(f"--workdir {self.folder} is not what the first process has there")

    def _record(self, final: Collection[str]) -> run_record.Record | None:
        if not (self.folder / "config.json").exists():
            return None
        run_record.claim(self.folder, self.config.plain)
        record = run_record.read(self.folder)
        return record if record is not None and record.status in final else None


def run(
    config: RunConfig,
    workdir: Path,
    label: str = "train",
    mesh: Mesh | None = None,
    say: Say | None = None,
    audit: bool = True,
    track: Track = NO_TRACKERS,
) -> run_record.Record:
    """Train the run that a config describes, or continue where an earlier process stopped.

    If the folder has a completed record of the same config, nothing is changed, and that record is
    returned. With several processes (`experiments.setup.processes`), all call this, and one
    writes.

    Args:
      say: called with a line on the memory that the run will take, before it takes any, and one on
        its data; or with a line that the existing record has no seal.
      audit: whether to compare the compiled step with NumPy's before it trains.
      track: the trackers that get the metrics, too.

    Raises:
      ValueError, FileNotFoundError: the config cannot work, the folder holds another run, or
        another process trains there; nothing has been trained or overwritten.
      LostFolderError: the folder was removed or replaced during the run (also a ValueError).
      Interrupted: a SIGTERM came before the end of training; there is no record yet.
    """
    how = RunOptions(retry=True, audit=audit, track=track)
    (ended,) = run_together([config], [workdir], how, label, say, mesh)
    if isinstance(ended, Exception):
        raise ended
    return ended


def run_together(
    configs: Sequence[RunConfig],
    folders: Sequence[Path],
    how: RunOptions = USUAL,
    label: str = "trials",
    say: Say | None = None,
    mesh: Mesh | None = None,
) -> list[Ended]:
    """Train the trials of a program, or continue where an earlier process stopped.

    Every folder gets the same files as that of a single run, except checkpoints: those of several
    trials are in a folder beside the others. If another process trains in a trial's folder, that
    trial is left to it, and its result here is an error.

    Args:
      label: the text of the progress bar.
      say: as for `run`.
      mesh: the devices that train together; only for a single trial.

    Returns:
      For each trial, its record, or the error that kept it from being trained.

    Raises:
      Interrupted: a SIGTERM came before the end of training.
    """
    started = time.perf_counter()
    if mesh is not None and len(configs) > 1:
        raise ValueError("only a single trial trains on a mesh")
    trials = [_Trial(*each) for each in zip(configs, folders, strict=True)]
    if len(trials) == 1 and (ended := _ended(trials, how.final)):
        # This works in a read-only folder, too.
        if say is not None and processes.writes() and not _sealed(ended[0], folders[0]):
            say(UNSEALED)
        return [ended[0]]
    with preemption() as interrupted, alone_in(folders) as busy:
        order = Order(how, label, interrupted, started)
        if len(trials) > 1 or how.halving:
            return _run_group(trials, say, order, busy)
        # Another process may have completed the run in between.
        ended = dict(busy) or _ended(trials, how.final)
        if not ended:
            experiments, ended = _build([0], trials, say, mesh=mesh)
            if experiments:
                ended = train(experiments, (), folders, None, order)
        return [ended[0]]


def _run_group(
    trials: Sequence[_Trial], say: Say | None, order: Order, busy: Mapping[int, Exception]
) -> list[Ended]:
    """As `run_together`, where the trials with the numbers in `busy` belong to other processes."""
    order = dataclasses.replace(order, started=time.perf_counter())
    folders, ended = [each.folder for each in trials], _ended(trials, order.how.final)
    home = GroupFolder.of([each.config for each in trials], folders)
    home.path.parent.mkdir(parents=True, exist_ok=True)
    with alone_in([home.path]) as common:
        if common:  # another process holds the checkpoints
            return _filled(ended, common[0], len(trials))
        wanted = home.trials or [number for number in range(len(trials)) if number not in ended]
        at_once = len(wanted) if (order.how.execution or home.execution) == "vmap" else 1
        experiments, wrong = _build(wanted, trials, say, busy, at_once)
        if home.trials and wrong:
            number, error = next(iter(wrong.items()))
            error = ValueError(
                f"{home.path} has checkpoints of all these trials, but {folders[number].name} "
                f"cannot be made now: {error}; mend that, or delete them to start over without it"
            )
            return _filled(wrong | ended, error, len(trials))  # the checkpoints stay
        if order.how.halving and (missing := _missing(folders, experiments, wrong | ended)):
            return _filled(ended, ValueError(MISSING.format(*missing)), len(trials))
        if not home.trials:
            home.begin(list(experiments))
        ended = wrong | ended
        if experiments.keys() - ended.keys():
            ended |= train(experiments, ended.keys(), folders, home, order)
        home.remove()
    if rest := [number for number in range(len(trials)) if number not in ended]:
        # An earlier process could not make these trials, and began without them.
        mine = [trials[number] for number in rest]
        others = {place: busy[number] for place, number in enumerate(rest) if number in busy}
        ended |= dict(zip(rest, _run_group(mine, say, order, others), strict=True))
    return [ended[number] for number in range(len(trials))]


def _filled(ended: Mapping[int, Ended], error: Exception, count: int) -> list[Ended]:
    """How each trial ended; those that are not known did not train, because of an error."""
    return [ended.get(number, error) for number in range(count)]


def _missing(
    folders: Sequence[Path], experiments: Collection[int], ended: Mapping[int, Ended]
) -> tuple[str, object] | None:
    """A trial that others would train without, and why; None if there is none."""
    for number, folder in enumerate(folders):
        if number not in experiments and len(ended) < len(folders):
            why = ended.get(number, "an earlier process began without it")
            if isinstance(why, run_record.Record):
                why = f"it is {why.status} already; begin anew in another --workdir"
            return folder.name, why
    return None


def _build(
    numbers: Sequence[int],
    trials: Sequence[_Trial],
    say: Say | None = None,
    busy: Mapping[int, Exception] = MappingProxyType({}),
    at_once: int = 1,
    mesh: Mesh | None = None,
) -> tuple[dict[int, Experiment], dict[int, Ended]]:
    """Make trials with one copy of their model, and claim their folders.

    Returns:
      The experiments by number, and the errors of those that cannot be made by number.
    """
    experiments: dict[int, Experiment] = {}
    wrong: dict[int, Ended] = {}
    loaded, first, read = None, None, None
    for number in numbers:
        if number in busy:
            wrong[number] = busy[number]
            continue
        trial, texts = trials[number], None
        config = trial.config
        try:
            if loaded is None and say is not None and processes.writes():
                texts = announce(config, say, mesh, trials=len(numbers), at_once=at_once)
                line = describe(config.data, texts)
                alike = all(trials[each].config.data == config.data for each in numbers)
                say(line if alike else f"{line} (of the first trial)")
                if config.model.products and not multiplies_bfloat16():
                    say(NO_GAIN)
            if loaded is None:
                with explained(of_loading(config.model)):
                    texts = with_room(
                        texts or read_texts(config), config, [each.config for each in trials]
                    )
                    loaded = load(config, mesh, texts)
            with explained(of_a_step(config)):
                if read is not None and read != config.data:  # another draw of the examples
                    loaded = dataclasses.replace(loaded, texts=read_texts(config))
                read = config.data
                made = build(config, loaded, mesh, folder=trial.folder)
            trial.claim()
            if made.gathered is not None:
                made.gathered.save(trial.folder / from_data.FILE)
        except TooManyTrialsError as error:  # so it is for each of them
            wrong |= {each: error for each in numbers if each not in wrong}
            break
        except Exception as error:  # any error: the others train without this trial
            wrong[number] = error
            continue
        line = None if first or say is None else passed_over(made.frozen)
        if line and say and processes.writes():
            say(line)
        first = first or made.frozen
        experiments[number] = dataclasses.replace(made, frozen=share(made.frozen, first))
    return experiments, wrong


def _ended(trials: Sequence[_Trial], final: Collection[str]) -> dict[int, Ended]:
    """The records of trials that are not trained again, and errors of folders of other runs."""
    ended: dict[int, Ended] = {}
    for number, trial in enumerate(trials):
        try:
            if (record := trial.ended(final)) is not None:
                ended[number] = record
        except (ValueError, OSError) as error:
            ended[number] = error
    return ended


def _sealed(ended: Ended, folder: Path) -> bool:
    """Whether a run's record has a seal; a run without a record needs none."""
    if not isinstance(ended, run_record.Record):
        return True
    found = run_record.read_sealed(folder)
    return found is not None and found[1]


def summarise(record: run_record.Record) -> list[str]:
    """Lines on the result of a run, with the scores of the saved adapter."""
    of = "trained" if record.steps else "in the adapter"
    lines = [f"{record.parameters_trained:,} of {record.parameters_total:,} parameters {of}"]
    if record.tokenised_per_second is not None:
        lines.append(f"texts tokenised at {record.tokenised_per_second:,.0f} examples/s")
    if record.note:
        lines.insert(0, record.note)
    ended = f"{record.status} after {record.steps} steps" if record.steps else "not trained here"
    if record.status != "completed":
        return [ended if record.steps else record.status, *lines]
    scores, saved = record.metrics_last, ""
    if of_record(record.config).train.select == "best":
        scores, saved = record.metrics_best, f", saved as of step {record.best_step}, the best"
    named = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
    return [f"{ended}{saved}: {named}", *lines]
