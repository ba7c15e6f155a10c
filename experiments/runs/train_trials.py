"""Train the trials of a program, and write what each leaves in its folder."""

import contextlib
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from experiments.distributed import processes
from experiments.runs import artifacts, step_audit
from experiments.runs.folder_lock import Place
from experiments.runs.group import Alone, Together, together
from experiments.runs.group_folder import GroupFolder, stepping
from experiments.runs.progress_bar import bar
from experiments.setup.experiment import Experiment
from experiments.setup.out_of_memory import explained
from lora_jax.records import run_record
from lora_jax.records.metrics_log import LostFolderError, Metrics, last_check
from lora_jax.sharding import memory
from lora_jax.training.fastest_program import fastest
from lora_jax.training.loop import fit
from lora_jax.training.outcome import Outcome
from lora_jax.training.step import TrainState
from lora_jax.training.trial_program import Execution, Program

TEMPORARY_FAILURE = 75
"""The exit code of a program that should be started again (EX_TEMPFAIL of sysexits.h)."""


class Interrupted(SystemExit):
    """A run got a SIGTERM and has saved its state; the program exits with TEMPORARY_FAILURE."""

    def __init__(self) -> None:
        super().__init__(TEMPORARY_FAILURE)


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be done with trials, besides their settings."""

    label: str
    """The text of the progress bar."""
    execution: Execution | None
    """How several trials step; None for the way that ends first."""
    audit: bool
    """Whether to compare the compiled step with NumPy's before training."""
    interrupted: Callable[[int], bool]
    """As in `lora_jax.training.loop.fit`."""
    started: float
    """When this process began with the trials, by `time.perf_counter`."""


def train(
    experiments: Mapping[int, Experiment],
    done: Collection[int],
    folders: Sequence[Path],
    home: GroupFolder | None,
    order: Order,
) -> dict[int, run_record.Record]:
    """Train, and write the files of the trials that were not `done`.

    Args:
      experiments: the trials, by the numbers of their folders.
      home: the folder of the common checkpoints; None for a single run, which has its own.

    Returns:
      The records of these trials, by number.

    Raises:
      Interrupted: a SIGTERM came before the end of training; there are no records yet.
      LostFolderError: a folder was removed or replaced during the run (also a ValueError).
    """
    outcomes = {number: Outcome() for number in experiments}
    places = {number: Place(folders[number]) for number in experiments if number not in done}
    ended: dict[int, run_record.Record] = {}

    def end(number: int, status: str, note: str, left: artifacts.Left = artifacts.NOTHING) -> None:
        seconds = (time.perf_counter() - order.started) / len(experiments)
        check = last_check(folders[number] / "metrics.jsonl")
        given = experiments[number], outcomes[number], seconds, status, note, left, check
        record = artifacts.record(*given)
        places[number].require()
        if processes.writes():
            run_record.write(folders[number], record)
        ended[number] = record

    try:
        all_of_them = list(experiments.values())
        group = together(all_of_them) if home else Alone(all_of_them[0])
        with explained(group.experiments[0].config):
            where = [folders[number] for number in experiments]
            states, notes = _fit(group, where, home, list(outcomes.values()), order)
            for place, number in enumerate(experiments):
                if number in done:
                    continue
                if outcomes[number].diverged:
                    note = artifacts.NOT_FINITE.format(outcomes[number].steps)
                    end(number, "diverged", note)
                    continue
                places[number].require()
                call = group.call(place, states[place].trainable)
                own = group.own(place, states[place])
                left = artifacts.save(experiments[number], own, folders[number], call)
                end(number, "completed", notes[place], left)
    except Exception as error:
        for number in experiments.keys() - ended.keys() - set(done):
            # Writing fails on a full disk or in a removed folder; the first error reports that.
            with contextlib.suppress(OSError, LostFolderError):
                end(number, "failed", f"{type(error).__name__}: {error}".splitlines()[0])
        for place in places.values():
            place.require()
        raise
    processes.together("the records are written")
    return ended


def _fit(
    group: Alone | Together,
    folders: Sequence[Path],
    home: GroupFolder | None,
    outcomes: Sequence[Outcome],
    order: Order,
) -> tuple[Sequence[TrainState], Sequence[str]]:
    """Train the trials; return the states to save, and notes for the records."""
    loops, writes = [each.loop for each in group.experiments], processes.writes()
    program = _program(group, home, order.execution)
    audit = functools.partial(step_audit.of_program, group.experiments, program)
    with contextlib.ExitStack() as stack:
        saved = stack.enter_context(group.saved(home.path if home else folders[0]))
        metrics = [stack.enter_context(Metrics(folder, enabled=writes)) for folder in folders]
        states: Sequence[TrainState] = fit(
            program,
            group.start(),
            loops=loops,
            batches=[each.batches for each in group.experiments],
            evaluate=group.evaluate,
            saved=saved,
            metrics=metrics,
            outcomes=outcomes,
            progress=stack.enter_context(bar(order.label, loops[0].steps)) if writes else None,
            interrupted=order.interrupted,
            audit=audit if order.audit else None,
        )
        notes = [""] * len(states)
        if group.experiments[0].config.train.select == "best" and not outcomes[0].interrupted:
            states, notes = saved.best(states, outcomes)
    if outcomes[0].interrupted:
        if writes:
            step = max(outcome.steps for outcome in outcomes)  # a diverged trial stopped before
            print(f"interrupted: step {step} is saved; the same command goes on")
        raise Interrupted
    return states, notes


def _program(
    group: Alone | Together, home: GroupFolder | None, execution: Execution | None
) -> Program:
    """The program that the caller or an earlier process chose, or else the fastest."""
    if home is None:
        return group.program("each")
    if (chosen := execution or home.execution) is not None:
        print(stepping(chosen, {}))
        return group.program(chosen)
    first = group.experiments[0]
    padded = [batch.padded_length for batch in first.first_epoch()]
    step = padded.index(statistics.mode(padded))
    batches = [next(each.batches(step)) for each in group.experiments]
    shapes, room = len(set(padded)), memory.available()
    program, seconds = fastest(group.program, group.start, batches, first.loop.steps, shapes, room)
    home.settle(program.execution, seconds)
    print(stepping(program.execution, seconds))
    return program
