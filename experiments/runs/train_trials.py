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
from experiments.runs.halving import Halving
from experiments.runs.how import How
from experiments.runs.interruption import Interrupted
from experiments.runs.progress_bar import bar
from experiments.runs.rungs import Decision, of_trial
from experiments.setup.experiment import Experiment
from experiments.setup.out_of_memory import explained
from experiments.tracking.tracker import Status
from experiments.tracking.tracking import Tracking
from lora_jax.error_text import first_line
from lora_jax.records import run_record
from lora_jax.records.metrics_log import LostFolderError, last_check
from lora_jax.sharding import memory
from lora_jax.training.averages import evaluated
from lora_jax.training.fastest_program import fastest
from lora_jax.training.loop import fit
from lora_jax.training.outcome import Outcome
from lora_jax.training.step import TrainState
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
        return _train(experiments, done, folders, home, order, tracking)


def _train(
    experiments: Mapping[int, Experiment],
    done: Collection[int],
    folders: Sequence[Path],
    home: GroupFolder | None,
    order: Order,
    tracking: Tracking,
) -> dict[int, run_record.Record]:
    """As `train`, with the trackers of the trials."""
    outcomes = {number: Outcome() for number in experiments}
    places = {number: Place(folders[number]) for number in experiments if number not in done}
    ended: dict[int, run_record.Record] = {}

    decided: list[Decision] = []

    def end(
        number: int, status: Status, note: str, left: artifacts.Left = artifacts.NOTHING
    ) -> None:
        seconds = (time.perf_counter() - order.started) / len(experiments)
        check = last_check(folders[number] / "metrics.jsonl")
        given = experiments[number], outcomes[number], seconds, status, note, left, check
        rungs = of_trial(decided, list(experiments).index(number))
        record = artifacts.record(*given, rungs=rungs, trackers=tracking.where(number))
        places[number].require()
        if processes.writes():
            run_record.write(folders[number], record)
        ended[number] = record
        tracking.end(number, status)

    def stop(place: int, decisions: list[Decision]) -> None:
        """Write the record of a trial that leaves at the last of these rungs."""
        decided[:] = decisions
        number = list(experiments)[place]
        if number in done or number in ended:
            return
        if outcomes[number].diverged:
            end(number, "diverged", artifacts.NOT_FINITE.format(outcomes[number].steps))
            return
        metric, rung = experiments[number].loop.metric, len(decisions) - 1
        end(number, "stopped", decisions[-1].said(place, rung, metric))

    try:
        all_of_them = list(experiments.values())
        group = together(all_of_them) if home else Alone(all_of_them[0])
        with explained(group.experiments[0].config):
            where = [folders[number] for number in experiments]
            if isinstance(group, Together) and home is not None and order.how.halving:
                found = _halved(group, where, home, outcomes, order, tracking, stop)
            else:
                each = zip(*_fit(group, where, home, outcomes, order, tracking), strict=True)
                found = dict(enumerate(each))
            for place, number in enumerate(experiments):
                if number in done or number in ended:
                    continue
                if outcomes[number].diverged:
                    note = artifacts.NOT_FINITE.format(outcomes[number].steps)
                    end(number, "diverged", note)
                    continue
                places[number].require()
                state, note = found[place]
                state = dataclasses.replace(state, trainable=evaluated(state))
                call = group.call(place, state.trainable)
                own = group.own(place, state)
                mine = group.experiments[place]  # whose batches have the shapes that were scored
                is_last = int(state.step) == outcomes[number].steps
                scored = group.outputs.get(mine, {}) if is_last else {}
                left = artifacts.save(mine, own, folders[number], call, scored)
                tracking.write(number, outcomes[number].steps, left.written, left.images)
                end(number, "completed", note, left)
    except Exception as error:
        for number in experiments.keys() - ended.keys() - set(done):
            # Writing fails on a full disk or in a removed folder; the first error reports that.
            with contextlib.suppress(OSError, LostFolderError):
                end(number, "failed", first_line(error))
        for place in places.values():
            place.require()
        raise
    processes.together("the records are written")
    return ended


def _fit(
    group: Alone | Together,
    folders: Sequence[Path],
    home: GroupFolder | None,
    outcomes: Mapping[int, Outcome],
    order: Order,
    tracking: Tracking,
) -> tuple[Sequence[TrainState], Sequence[str]]:
    """Train the trials; return the states to save, and notes for the records.

    Args:
      outcomes: of the trials, by number, in the order of the group.
    """
    loops, writes = [each.loop for each in group.experiments], processes.writes()
    results = list(outcomes.values())
    program = _program(group, home, order.how.execution)
    audit = functools.partial(step_audit.of_program, group.experiments, program)
    with contextlib.ExitStack() as stack:
        saved = stack.enter_context(group.saved(home.path if home else folders[0]))
        metrics = [
            stack.enter_context(tracking.metrics(number, folder, writes))
            for number, folder in zip(outcomes, folders, strict=True)
        ]
        states: Sequence[TrainState] = fit(
            program,
            group.start(),
            loops=loops,
            batches=[each.batches for each in group.experiments],
            evaluate=group.evaluate,
            saved=saved,
            metrics=metrics,
            outcomes=results,
            progress=stack.enter_context(bar(order.label, loops[0].steps)) if writes else None,
            interrupted=order.interrupted,
            audit=audit if order.how.audit else None,
        )
        notes = [""] * len(states)
        if group.experiments[0].config.train.select == "best" and not results[0].interrupted:
            states, notes = saved.best(states, results)
    if results[0].interrupted:
        _say_interrupted(results)
        raise Interrupted
    return states, notes


def _halved(
    group: Together,
    folders: Sequence[Path],
    home: GroupFolder,
    outcomes: Mapping[int, Outcome],
    order: Order,
    tracking: Tracking,
    stop: Callable[[int, list[Decision]], None],
) -> dict[int, tuple[TrainState, str]]:
    """Train by successive halving; return the states to save and notes, by the trial's place."""
    steps, writes = group.experiments[0].loop.steps, processes.writes()
    numbers, results = list(outcomes), list(outcomes.values())
    first = _program(group, home, order.how.execution)
    way, audit = first.execution, functools.partial(step_audit.of_program, group.experiments, first)
    with contextlib.ExitStack() as stack:
        halving = Halving(
            group,
            lambda place: tracking.metrics(numbers[place], folders[place], writes),
            home.path,
            results,
            order.how.halving,
            stop,
            order.interrupted,
            stack.enter_context(bar(order.label, steps)) if writes else None,
            audit if order.how.audit else None,
        )
        found = halving.train(
            lambda part: first if len(part.frozen) == len(group.frozen) else part.program(way)
        )
    if any(outcome.interrupted for outcome in results):
        _say_interrupted(results)
        raise Interrupted
    return found


def _say_interrupted(outcomes: Sequence[Outcome]) -> None:
    if processes.writes():
        step = max(outcome.steps for outcome in outcomes)  # a diverged trial stopped before
        print(f"interrupted: step {step} is saved; the same command goes on")


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
