"""Train the trials of a group as one program, with one copy of the weights, compiled once."""

import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experiments.runs import artifacts, step_audit
from experiments.runs.folder_lock import Place, alone_in
from experiments.runs.memory_line import announce
from experiments.runs.progress_bar import bar
from experiments.setup.experiment import Experiment, build
from experiments.setup.load import gather
from experiments.setup.out_of_memory import explained
from experiments.sweeps.group import Together, together
from experiments.sweeps.group_folder import GroupFolder, stepping
from lora_jax.files.canonical_json import config_digest
from lora_jax.records import run_record
from lora_jax.records.metrics_log import LostFolderError, Metrics
from lora_jax.sharding import memory
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.fastest_program import fastest
from lora_jax.training.fit_trials import fit_trials
from lora_jax.training.loop import Outcome
from lora_jax.training.masking import share
from lora_jax.training.step import TrainState
from lora_jax.training.trial_program import Execution, Program

Ended = run_record.Record | Exception


def run_together(
    configs: Sequence[dict[str, Any]],
    folders: Sequence[Path],
    label: str = "trials",
    execution: Execution | None = None,
    left: Collection[str] = ("completed",),
    say: Callable[[str], None] | None = None,
    audit: bool = True,
) -> list[Ended]:
    """Train the trials of a group, or continue where an earlier process stopped.

    Every folder gets the files that `experiments.runs.run` would write, except checkpoints: these
    are of all trials together, in a folder beside the others. If another process trains in a
    trial's folder, that trial is left to it, and its result here is an error.

    Args:
      execution: how the trials step; by default, the way that ends first.
      left: the statuses of records whose trials are not trained again.
      say: called with a line on the memory that the trials will take, before they take any.
      audit: whether to compare the compiled program with NumPy's before it trains.

    Returns:
      For each trial, its record, or the error that kept it from being trained.
    """
    with alone_in(folders) as busy:
        return _run_together(configs, folders, label, execution, left, say, audit, busy)


def _run_together(
    configs: Sequence[dict[str, Any]],
    folders: Sequence[Path],
    label: str,
    execution: Execution | None,
    left: Collection[str],
    say: Callable[[str], None] | None,
    audit: bool,
    busy: Mapping[int, Exception],
) -> list[Ended]:
    """As `run_together`, where the folders with the numbers in `busy` belong to other processes."""
    home = GroupFolder.of(configs, folders)
    ended: dict[int, Ended] = {}
    for number, (folder, config) in enumerate(zip(folders, configs, strict=True)):
        try:
            if (record := _ended(folder, config, left)) is not None:
                ended[number] = record
        except (ValueError, OSError) as error:
            ended[number] = error
    home.path.parent.mkdir(parents=True, exist_ok=True)
    with alone_in([home.path]) as common:
        if common:  # another process holds the checkpoints
            return [ended.get(number, common[0]) for number in range(len(configs))]
        wanted = home.trials or [number for number in range(len(configs)) if number not in ended]
        at_once = len(wanted) if (execution or home.execution) == "vmap" else 1
        experiments, wrong = _build(wanted, configs, folders, say, busy, at_once)
        if home.trials and wrong:
            number, error = next(iter(wrong.items()))
            why = f"{home.path} has checkpoints of all these trials, but {folders[number].name} "
            why += (
                f"cannot be made now: {error}; mend that, or delete them to start over without it"
            )
            wrong = dict.fromkeys(range(len(configs)), ValueError(why)) | wrong | ended
            return [wrong[number] for number in range(len(configs))]  # the checkpoints stay
        if not home.trials:
            home.begin(list(experiments))
        ended = wrong | ended
        if experiments.keys() - ended.keys():
            ended |= _train(experiments, ended.keys(), folders, home, label, execution, audit)
        home.remove()
    if rest := [number for number in range(len(configs)) if number not in ended]:
        # An earlier process could not make these trials, and began without them.
        mine = [configs[number] for number in rest], [folders[number] for number in rest]
        others = {place: busy[number] for place, number in enumerate(rest) if number in busy}
        made = _run_together(*mine, label, execution, left, say, audit, others)
        ended |= dict(zip(rest, made, strict=True))
    return [ended[number] for number in range(len(configs))]


def _build(
    numbers: Sequence[int],
    configs: Sequence[dict[str, Any]],
    folders: Sequence[Path],
    say: Callable[[str], None] | None = None,
    busy: Mapping[int, Exception] = MappingProxyType({}),
    at_once: int = 1,
) -> tuple[dict[int, Experiment], dict[int, Exception]]:
    """Make trials with one copy of their model.

    Returns:
      The experiments by number, and the errors of those that cannot be made by number.
    """
    experiments: dict[int, Experiment] = {}
    wrong: dict[int, Exception] = {}
    materials, first = None, None
    for number in numbers:
        if number in busy:
            wrong[number] = busy[number]
            continue
        try:
            texts = None
            if materials is None and say is not None:
                texts = announce(configs[number], say, trials=len(numbers), at_once=at_once)
            run_record.claim(folders[number], configs[number])
            materials = materials or gather(configs[number], texts=texts)
            with explained(configs[number]):
                made = build(configs[number], materials)
        except Exception as error:  # any error: the others train without this trial
            wrong[number] = error
            continue
        first = first or made.frozen
        experiments[number] = dataclasses.replace(made, frozen=share(made.frozen, first))
    return experiments, wrong


def _ended(folder: Path, config: dict[str, Any], left: Collection[str]) -> run_record.Record | None:
    """The record of a trial that is not trained again; None if the trial is to be trained.

    Raises:
      ValueError: the folder holds another run.
    """
    if not (folder / "config.json").exists():
        return None
    run_record.claim(folder, config)
    record = run_record.read(folder)
    return record if record is not None and record.status in left else None


def _train(
    experiments: Mapping[int, Experiment],
    done: Collection[int],
    folders: Sequence[Path],
    home: GroupFolder,
    label: str,
    execution: Execution | None,
    audit: bool,
) -> dict[int, Ended]:
    """Train, and write the files of the trials that were not `done`; return records by number."""
    started = time.perf_counter()
    outcomes = {number: Outcome() for number in experiments}
    places = {number: Place(folders[number]) for number in experiments}

    def end(number: int, status: str, note: str, *more: Any) -> run_record.Record:
        share = (time.perf_counter() - started) / len(experiments)
        began = time.perf_counter() - share
        outcome = outcomes[number]
        record = artifacts.record(experiments[number], outcome, began, status, note, *more)
        places[number].require()
        run_record.write(folders[number], record)
        return record

    ended: dict[int, Ended] = {}
    try:
        group = together(list(experiments.values()))
        where = [folders[number] for number in experiments]
        with explained(group.shared.config):
            states = _fit(group, where, home, list(outcomes.values()), label, execution, audit)
        for place, number in enumerate(experiments):
            if number in done:
                continue
            if outcomes[number].diverged:
                note = artifacts.NOT_FINITE.format(outcomes[number].steps)
                ended[number] = end(number, "diverged", note)
                continue
            call = group.call(place, states[place].trainable)
            own = group.own(place, states[place])
            left = artifacts.save(experiments[number], own, folders[number], call)
            ended[number] = end(number, "completed", "", left)
    except Exception as error:
        for number in experiments.keys() - ended.keys() - set(done):
            # Writing fails on a full disk or in a removed folder; the first error reports that.
            with contextlib.suppress(OSError, LostFolderError):
                end(number, "failed", f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    return ended


def _fit(
    group: Together,
    folders: Sequence[Path],
    home: GroupFolder,
    outcomes: Sequence[Outcome],
    label: str,
    execution: Execution | None,
    audit: bool,
) -> list[TrainState]:
    """Train the program, and return the states to save."""
    loop, config = group.shared.loop, group.shared.config
    digests = [config_digest(each.config) for each in group.experiments]
    task = group.shared.task.digest()
    identity = {"trials": config_digest({"trials": digests}), "data": task}
    identity["weights"] = group.shared.weights_digest
    program = _program(group, home, execution)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(home.path / "checkpoints"))
        metrics = [stack.enter_context(Metrics(folder)) for folder in folders]
        progress = stack.enter_context(bar(label, loop.steps))
        return fit_trials(
            program,
            group.start(),
            loops=[each.loop for each in group.experiments],
            batches=[each.batches for each in group.experiments],
            evaluate=group.evaluate,
            checkpoints=checkpoints,
            metrics=metrics,
            identity=identity,
            outcomes=outcomes,
            keep_best=config["train"]["select"] == "best",
            progress=progress,
            audit=(lambda states: step_audit.of_program(group.experiments, program, states))
            if audit
            else None,
        )


def _program(group: Together, home: GroupFolder, execution: Execution | None) -> Program:
    """The program that the caller or an earlier process chose, or else the fastest."""
    if (chosen := execution or home.execution) is not None:
        print(stepping(chosen, {}))
        return group.program(chosen)
    plan = group.shared.plan()
    epoch = itertools.islice(plan.start(), plan.steps_per_epoch)
    padded = [batch.padded_length for batch in epoch]
    step = padded.index(statistics.mode(padded))
    batches = [next(each.batches(step)) for each in group.experiments]
    steps = group.shared.loop.steps
    shapes, room = len(set(padded)), memory.available()
    program, seconds = fastest(group.program, group.start, batches, steps, shapes, room)
    home.settle(program.execution, seconds)
    print(stepping(program.execution, seconds))
    return program
