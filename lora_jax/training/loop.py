"""The loop around a training step, which can be killed at any moment and continued."""

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.compiled.audit import Audit
from lora_jax.records.metrics_log import Metrics
from lora_jax.training.loop_settings import Loop
from lora_jax.training.outcome import Outcome, all_finite
from lora_jax.training.saved_trials import SavedTrials
from lora_jax.training.step import Batch, TrainState, eval_params
from lora_jax.training.trial_program import Program
from lora_jax.transform.placement import Trainable

AHEAD = 2
"""How many steps may wait for the device, so that a SIGTERM is not seen many steps later."""
Progress = Callable[[int, float, int], None]
"""`(step, loss, examples)`: the loop calls it at every step that it logs, as for a progress bar."""


@dataclasses.dataclass(frozen=True, eq=False)
class TrialRun:
    """One trial in the loop, besides its state."""

    loop: Loop
    batches: Callable[[int], Iterable[Batch]]
    """Gives the batches from a step on."""
    metrics: Metrics
    outcome: Outcome
    """Filled in during training, so that a caller that catches an error sees how far it came."""


def fit(
    program: Program,
    states: Sequence[TrainState],
    trials: Sequence[TrialRun],
    *,
    evaluate: Callable[[int, Trainable], dict[str, float]],
    saved: SavedTrials,
    progress: Progress | None = None,
    interrupted: Callable[[int], bool] | None = None,
    audit: Callable[[Sequence[TrainState]], Audit | None] | None = None,
    until: int | None = None,
) -> list[TrainState]:
    """Train the trials of a program to the end, from the newest checkpoint if there is one.

    A run is a program of one trial (`trial_program.alone`). A process that is killed at any moment
    and started again ends with the same bits, on the same machine: the batch of a step depends on
    the step alone, random keys are folded from it, and lines of the metrics after the restored step
    are dropped. In a run of several processes, all call this and agree on what they evaluate; each
    reads its own copy of a step's metrics.

    A loss or gradient that is not finite ends a trial (`diverged`) at the next step that logs or
    saves. Weights or metrics that are not finite end it before they are saved, so the checkpoints
    of a run hold a good state. Other trials continue; the seconds are divided among them.

    Args:
      states: the states before the first step; they are donated.
      trials: they have as many steps, and log, evaluate and save at the same ones.
      evaluate: gives the metrics of a trial's trainables (`step.eval_params`); its first
        argument is the trial's number.
      saved: the checkpoints; restores and saves the states.
      progress: gets the mean loss of the trials that go on, and the examples of all.
      interrupted: called after each step, with its number. If true, that step is saved and the loop
        ends (`Outcome.interrupted`). It must tell all processes so at the same step.
      audit: called before the first step, with the states; raises if the compiled step is wrong.
      until: the step that is saved and after which the loop ends; None for the last one.

    Returns:
      The last states.

    Raises:
      ValueError: the newest checkpoint belongs to a run with another identity, or lines of metrics
        that were written before it are missing.
      LostFolderError: the file of the metrics was removed during the run; nothing more is saved.
    """
    outcomes = [trial.outcome for trial in trials]
    loop, count = trials[0].loop, len(trials)
    states, done = saved.restore(states, outcomes)
    for trial in trials:
        trial.metrics.truncate(trial.outcome.steps, trial.outcome.metrics_checksum)
    if audit is not None and loop.steps and not done:
        found = audit(states)
        for outcome in outcomes:
            outcome.record_audit(found and found.shared(count))
    if loop.evaluate_first and not done:
        for each, outcome in enumerate(outcomes):
            outcome.metrics_first = evaluate(each, states[each].trainable)
    for each, outcome in enumerate(() if loop.steps else outcomes):
        scores = evaluate(each, eval_params(states[each]))
        trials[each].metrics.write(0, scores)
        outcome.record_evaluation(loop, scores)
    population = program.start(states)
    del states  # the population has them now: otherwise copies of all trainables would stay

    clock = time.perf_counter()
    counted: list[Any] = []
    waiting: collections.deque[Any] = collections.deque()
    examples = 0.0
    sources = [iter(trial.batches(done)) for trial in trials]
    active = _active(outcomes)
    last = loop.steps if until is None else until
    for number in range(done + 1, last + 1):
        if not active:
            break
        given = [next(sources[each]) if each in active else None for each in range(count)]
        population, values = program.step(population, given)
        waiting.append(values)
        if len(waiting) > AHEAD:
            jax.block_until_ready(waiting.popleft())
        for each in active:
            outcomes[each].steps = number
        # These sums are waited for below, if they are JAX arrays.
        counted += [(batch["weight"] > 0).sum() for batch in given if batch is not None]
        evaluates = loop.evaluates(number)
        stops = interrupted is not None and interrupted(number)
        saves = stops or evaluates or loop.due(loop.checkpoint_every, number)
        saves = saves or number == last
        logs = loop.due(loop.log_every, number)
        if not (logs or saves):
            continue  # dispatch the next step while this one runs
        read = program.read(values)
        seconds = (time.perf_counter() - clock) / len(active)
        for each in active:
            outcome = outcomes[each]
            outcome.seconds += seconds
            # A step's loss is that of the weights before it; the weights after it are checked here.
            outcome.diverged = not all_finite(read[each]) or (
                saves and not leaves_finite(program.pick(population, each).trainable)
            )
            if logs or outcome.diverged:
                trials[each].metrics.write(number, read[each])
        if not (active := _active(outcomes)):
            break
        examples += sum(map(float, counted))
        counted.clear()
        if progress is not None:
            loss = statistics.fmean(read[each]["loss"] for each in active)
            progress(number, loss, int(examples))
        for each in active if evaluates else ():
            state = program.pick(population, each)
            scores = evaluate(each, eval_params(state))
            trials[each].metrics.write(number, scores)
            outcomes[each].record_evaluation(trials[each].loop, scores)
            if outcomes[each].best_step == number:
                saved.improved(each, state)
        if not (active := _active(outcomes)):
            break
        if saves:
            for trial in trials:
                trial.metrics.require()
                trial.outcome.metrics_checksum = trial.metrics.checksum
            saved.save(number, program, population, outcomes)
        if stops:
            for outcome in outcomes:
                outcome.interrupted = True
            break
        clock = time.perf_counter()
    return [program.pick(population, each) for each in range(count)]


def _active(outcomes: Sequence[Outcome]) -> list[int]:
    """The numbers of the trials that go on."""
    return [number for number, outcome in enumerate(outcomes) if not outcome.diverged]


@jax.jit
def leaves_finite(tree: Any) -> Array:
    """Whether all numbers of a pytree are finite."""
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
