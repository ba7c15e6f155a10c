"""Train the trials of a group: to the end, or by successive halving.

Of a halving, the worst leave at each rung, and the rest share a new program:

    rungs.json     what was decided at each rung so far
    rung_0, ...    the checkpoints of the trials that train until a rung

A rung's checkpoints are those of the trials that reached it. So a process that is killed goes on
from the rung's newest one, or with the trials that were kept at the end of the rung before.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.runs.group import Group, trial_runs, with_batches_for
from experiments.runs.rungs import Decision, Ledger, Rung, decide, plan
from lora_jax.compiled.audit import Audit
from lora_jax.records.metrics_log import Metrics
from lora_jax.training.averages import eval_params
from lora_jax.training.loop import Progress, fit
from lora_jax.training.outcome import Outcome
from lora_jax.training.step import TrainState
from lora_jax.training.trial_program import Program

LEDGER = "rungs.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How the trials of a group are trained; its methods go through the rungs one by one.

    Where nothing is halved, the only rung is the end of training.
    """

    group: Group
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

    def train(self, program: Callable[[Group], Program]) -> dict[int, TrainState]:
        """Train to the end, from where an earlier process stopped.

        Args:
          program: makes the program of a group.

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
                states = self._until(rung.step, number, alive, decisions, program)
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
        states = self._until(loop.steps, len(rungs) - 1, alive, decisions, program)
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
        self,
        step: int,
        rung: int,
        alive: Sequence[int],
        decisions: Sequence[Decision],
        program: Callable[[Group], Program],
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
            made = program(group)
            fed = with_batches_for(made.execution, group.experiments)
            states: Sequence[TrainState] = fit(
                made,
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
