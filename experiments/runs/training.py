"""Train the trials of a program: to the end, or by successive halving.

Of a halving, the worst leave at each rung, and the rest share a new program:

    rungs.json     what was decided at each rung so far
    rung_0, ...    the checkpoints of the trials that train until a rung

A rung's checkpoints are those of the trials that reached it. So a process that is killed goes on
from the rung's newest one, or with the trials that were kept at the end of the rung before.
`trial_records` writes what each trial leaves in its folder.
"""

import contextlib
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from rich import progress as rich_progress

from experiments.runs import step_audit
from experiments.runs.group import Group, trial_runs, with_batches_for
from experiments.runs.group_folder import GroupFolder, stepping
from experiments.runs.interruption import Interrupted
from experiments.runs.run_options import RunOptions
from experiments.runs.rungs import Decision, Ledger, Rung, decide, plan
from experiments.runs.trial_records import TrialRecords
from experiments.setup import processes
from experiments.setup.experiment import Experiment
from experiments.setup.out_of_memory import explained, of_a_step
from experiments.tracking.tracking import Tracking
from lora_jax.compiled.audit import Audit
from lora_jax.records import run_record
from lora_jax.records.metrics_log import Metrics
from lora_jax.sharding import memory
from lora_jax.training.fastest_program import fastest
from lora_jax.training.loop import Progress, fit
from lora_jax.training.outcome import Outcome
from lora_jax.training.step import TrainState, eval_params
from lora_jax.training.trial_program import Execution, Program

LEDGER = "rungs.json"


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be done with trials, besides their settings."""

    how: RunOptions
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
        shown = bar(order.label, experiments[0].loop.steps)
        with shown if processes.writes() else contextlib.nullcontext() as progress:
            training = Training(
                group=group,
                program=program,
                metrics=records.metrics,
                home=home.path if home else records.folder(0),
                outcomes=outcomes,
                factor=order.how.halving,
                stopped=records.stopped,
                interrupted=order.interrupted,
                progress=progress,
                audit=audit if order.how.audit else None,
            )
            found = training.train()
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How the trials of a group are trained; its methods go through the rungs one by one.

    Where nothing is halved, the only rung is the end of training.
    """

    group: Group
    program: Program
    """That of all trials; the trials that go on at a rung step in the same way."""
    metrics: Callable[[int], Metrics]
    """Opens the metrics file of a trial, by its place."""
    home: Path
    """The folder of the checkpoints and decisions."""
    outcomes: Sequence[Outcome]
    factor: int
    """Every so many trials, one goes on; 0: all train to the end."""
    stopped: Callable[[int, list[Decision]], None]
    """Called with a trial that is taken out, and all decisions so far."""
    interrupted: Callable[[int], bool]
    """As in `lora_jax.training.loop.fit`, and so are `progress` and `audit`."""
    progress: Progress | None
    audit: Callable[[Sequence[TrainState]], Audit | None] | None

    def train(self) -> dict[int, TrainState]:
        """Train to the end, from where an earlier process stopped.

        Returns:
          The states to save of the trials that were never taken out; none if the process was
          interrupted.
        """
        loop, ledger = self.group.experiments[0].loop, Ledger(self.home / LEDGER)
        alive, decisions = list(range(len(self.group.experiments))), ledger.read()
        rungs = [Rung(len(alive), loop.steps)]
        if self.factor:
            rungs = plan(len(alive), loop.steps, self.factor)
        for number, rung in enumerate(rungs[:-1]):
            if number >= len(decisions):
                states = self._until(rung.step, number, alive, decisions)
                if self._was_interrupted(alive):
                    return {}
                scores = self._scores(alive, states, rung.step)
                ledger.add(decide(loop, rung.step, scores, rungs[number + 1].trials))
                decisions = ledger.read()
            else:  # by an earlier process, whose checkpoints have the outcomes of those that left
                reached = sorted(decisions[number].scores)
                self._at_end(number, reached, reached)
            alive = self._take_out(decisions[: number + 1])
            if not alive:
                return {}
        states = self._until(loop.steps, len(rungs) - 1, alive, decisions)
        return {} if self._was_interrupted(alive) else dict(zip(alive, states, strict=True))

    def _was_interrupted(self, alive: Sequence[int]) -> bool:
        return any(self.outcomes[number].interrupted for number in alive)

    def _scores(
        self, alive: Sequence[int], states: Sequence[TrainState], step: int
    ) -> dict[int, float | None]:
        """The scores at a rung; an evaluation of the loop at that step is not repeated."""
        scores: dict[int, float | None] = {}
        for number, state in zip(alive, states, strict=True):
            outcome, metric = self.outcomes[number], self.group.experiments[number].loop.metric
            if outcome.diverged:
                scores[number] = None
                continue
            if outcome.evaluations and outcome.evaluations[-1]["step"] == step:
                values = outcome.metrics_last
            else:
                values = self.group.evaluate(number, eval_params(state))
            scores[number] = values[metric] if math.isfinite(values[metric]) else None
        return scores

    def _take_out(self, decisions: list[Decision]) -> list[int]:
        """The trials that go on after the last of these decisions; the others are told to stop."""
        last = decisions[-1]
        for number, score in last.scores.items():
            if number not in last.going_on:
                if score is None:
                    self.outcomes[number].diverged = True
                outcome = self.outcomes[number]
                if not outcome.diverged:
                    outcome.steps = last.step
                if not outcome.evaluations or outcome.evaluations[-1]["step"] < last.step:
                    metric = self.group.experiments[number].loop.metric
                    outcome.metrics_last = {} if score is None else {metric: score}
                self.stopped(number, decisions)
        return last.going_on

    def _until(
        self, step: int, rung: int, alive: Sequence[int], decisions: Sequence[Decision]
    ) -> Sequence[TrainState]:
        """Train the trials of a rung, and save the states at its end."""
        group = self.group.take(alive)
        outcomes = [self.outcomes[number] for number in alive]
        with contextlib.ExitStack() as stack:
            saved = stack.enter_context(group.saved(self._folder(rung)))
            if rung:
                before = sorted(decisions[rung - 1].scores)
                saved.begin = lambda: self._at_end(rung - 1, before, alive)
            metrics = [stack.enter_context(self.metrics(number)) for number in alive]
            everyone = len(alive) == len(self.group.experiments)
            program = self.program if everyone else group.program(self.program.execution)
            fed = with_batches_for(program.execution, group.experiments)
            states: Sequence[TrainState] = fit(
                program,
                group.start(),
                trial_runs(fed, metrics, outcomes),
                evaluate=group.evaluate,
                saved=saved,
                progress=self.progress,
                interrupted=self.interrupted,
                audit=self.audit,
                until=step,
            )
            is_last = step == group.experiments[0].loop.steps
            return saved.best(states, outcomes) if is_last else states

    def _folder(self, rung: int) -> Path:
        return self.home / f"rung_{rung}" if self.factor else self.home

    def _at_end(
        self, rung: int, before: Sequence[int], chosen: Sequence[int]
    ) -> tuple[list[TrainState], list[TrainState], int]:
        """The states of some trials at the end of a rung, their best ones, and the step."""
        group = self.group.take(before)
        places = [before.index(number) for number in chosen]
        with group.saved(self._folder(rung)) as saved:
            outcomes = [self.outcomes[number] for number in before]
            left = {n: dataclasses.replace(self.outcomes[n]) for n in before if n not in chosen}
            if rung:
                previous = sorted(Ledger(self.home / LEDGER).read()[rung - 1].scores)
                saved.begin = lambda: self._at_end(rung - 1, previous, before)
            states, step = saved.restore(group.start(), outcomes)
            for number, outcome in left.items():  # they have ended, with the scores of the rung
                vars(self.outcomes[number]).update(vars(outcome))
            kept = [saved.kept[place] for place in places] if saved.kept else []
            return [states[place] for place in places], kept, step


@contextlib.contextmanager
def bar(label: str, steps: int) -> Iterator[Progress]:
    """Show a bar of `steps` steps; give a function to call with step, loss and examples so far."""
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[news]}"),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("left"),
    )
    with rich_progress.Progress(*columns) as progress:
        task = progress.add_task(label, total=steps, news="compiling")
        last = [time.perf_counter(), 0]

        def show(step: int, loss: float, examples: int) -> None:
            now = time.perf_counter()
            rate = (examples - last[1]) / max(now - last[0], 1e-9)
            last[:] = now, examples
            news = f"loss {loss:.3f}, {rate:.0f} examples/s"
            progress.update(task, completed=step, news=news)

        yield show
