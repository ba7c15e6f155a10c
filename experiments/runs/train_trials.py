"""Train the trials of a program; `trial_records` writes what each leaves in its folder."""

import contextlib
import dataclasses
import functools
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from experiments.distributed import processes
from experiments.runs import step_audit
from experiments.runs.group import Group, with_batches_for
from experiments.runs.group_folder import GroupFolder, stepping
from experiments.runs.halving import Training
from experiments.runs.how import How
from experiments.runs.interruption import Interrupted
from experiments.runs.progress_bar import bar
from experiments.runs.trial_records import TrialRecords
from experiments.setup.experiment import Experiment
from experiments.setup.out_of_memory import explained, of_a_step
from experiments.tracking.tracking import Tracking
from lora_jax.records import run_record
from lora_jax.sharding import memory
from lora_jax.training.fastest_program import fastest
from lora_jax.training.outcome import Outcome
from lora_jax.training.trial_program import Execution, Program


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be done with trials, besides their settings."""

    how: How
    label: str
    """The text of the progress bar."""
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
    mine = [number for number in experiments if number not in done]
    tracked = {number: folders[number] for number in mine}
    configs = {number: experiments[number].config.plain for number in mine}
    with Tracking(order.how.track, tracked, configs, processes.writes()) as tracking:
        records = TrialRecords(experiments, done, folders, order.started, tracking)
        try:
            _train(list(experiments.values()), home, records, order)
        except Exception as error:
            records.failed(error)
            raise
        processes.together("the records are written")
    return records.ended


def _train(
    experiments: Sequence[Experiment],
    home: GroupFolder | None,
    records: TrialRecords,
    order: Order,
) -> None:
    """Train the trials of a program, and write their records."""
    group = Group.of(experiments, alone=home is None)
    outcomes = list(records.outcomes.values())
    with explained(of_a_step(group.experiments[0].config)):
        program = _program(group, home, order.how.execution)
        fed = with_batches_for(program.execution, group.experiments)
        audit = functools.partial(step_audit.of_program, fed, program)
        with contextlib.ExitStack() as stack:
            shown = bar(order.label, experiments[0].loop.steps) if processes.writes() else None
            training = Training(
                group=group,
                metrics=records.metrics,
                home=home.path if home else records.folder(0),
                outcomes=outcomes,
                factor=order.how.halving,
                stopped=records.stopped,
                interrupted=order.interrupted,
                progress=shown and stack.enter_context(shown),
                audit=audit if order.how.audit else None,
            )
            found = training.train(
                lambda part: (
                    program
                    if len(part.frozen) == len(group.frozen)
                    else part.program(program.execution)
                )
            )
        _require_to_the_end(outcomes)
        for place, number in enumerate(records.outcomes):
            if number not in records.waiting:
                continue
            if records.outcomes[number].diverged:
                records.diverged(number)
            else:
                records.completed(number, group, place, found[place])


def _require_to_the_end(outcomes: Sequence[Outcome]) -> None:
    """Raise Interrupted, with a line, if training ended before its last step."""
    if not any(outcome.interrupted for outcome in outcomes):
        return
    if processes.writes():
        step = max(outcome.steps for outcome in outcomes)  # a diverged trial stopped before
        print(f"interrupted: step {step} is saved; the same command goes on")
    raise Interrupted


def _program(group: Group, home: GroupFolder | None, execution: Execution | None) -> Program:
    """The program that the caller or an earlier process chose, or else the fastest."""
    if home is None:
        return group.program("each")
    if (chosen := execution or home.execution) is not None:
        print(stepping(chosen, {}))
        return group.program(chosen)
    fed = with_batches_for("vmap", group.experiments)
    padded = [batch.padded_length for batch in fed[0].first_epoch()]
    step = padded.index(statistics.mode(padded))
    batches = [next(each.batches(step)) for each in fed]
    steps, shapes, room = fed[0].loop.steps, len(set(padded)), memory.available()
    program, seconds = fastest(group.program, group.start, batches, steps, shapes, room)
    home.settle(program.execution, seconds)
    print(stepping(program.execution, seconds))
    return program
