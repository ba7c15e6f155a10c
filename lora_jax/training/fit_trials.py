"""The loop of `loop.fit` for many trials that step together; they stop and continue together."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.compiled.audit import Audit
from lora_jax.files.canonical_json import numbers
from lora_jax.records.metrics_log import Metrics
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.loop import Loop, Outcome, Progress, all_finite, leaves_finite
from lora_jax.training.step import Batch, TrainState
from lora_jax.training.trial_program import Program, stack, unstack
from lora_jax.transform.placement import Trainable


def fit_trials(
    program: Program,
    states: Sequence[TrainState],
    *,
    loops: Sequence[Loop],
    batches: Sequence[Callable[[int], Iterable[Batch]]],
    evaluate: Callable[[int, Trainable], dict[str, float]],
    checkpoints: Checkpoints,
    metrics: Sequence[Metrics],
    identity: Mapping[str, str],
    outcomes: Sequence[Outcome],
    keep_best: bool = False,
    progress: Progress | None = None,
    audit: Callable[[Sequence[TrainState]], Audit | None] | None = None,
) -> list[TrainState]:
    """Train all trials to the end, from the newest checkpoint if there is one.

    Each trial gets what `loop.fit` does for one: the same batches, random keys, lines of metrics,
    evaluations and outcomes. A trial that diverges ends, and the others continue. Seconds are
    divided among the trials that are still training.

    Args:
      states: the states before the first step; they are donated.
      loops: one for each trial; all have as many steps, and evaluate and save at the same ones.
      evaluate: gives the metrics of a trial's trainables; its first argument is the trial's number.
      checkpoints: those of all trials together.
      outcomes: filled in during training.
      audit: as in `loop.fit`, for the shared program and all states.
      keep_best: whether the states of the best evaluations are returned, in place of the last.

    Raises:
      ValueError: the newest checkpoint is of other trials.
      LostFolderError: as in `loop.fit`.
    """
    loop, count = loops[0], len(states)
    best = jax.tree.map(jnp.copy, list(states)) if keep_best else []
    done = 0
    like = {"now": jax.eval_shape(stack, states)}
    like["best"] = like["now"] if keep_best else {}
    if (restored := checkpoints.restore(like)) is not None:
        saved, meta, done = restored
        if meta["identity"] != dict(identity):
            raise ValueError(f"{checkpoints.folder} belongs to other trials; name another folder")
        states = [unstack(saved["now"], number) for number in range(count)]
        best = [unstack(saved["best"], number) for number in range(len(best))]
        for outcome, values in zip(outcomes, meta["outcomes"], strict=True):
            vars(outcome).update(numbers(values))
    for log, outcome in zip(metrics, outcomes, strict=True):
        log.truncate(outcome.steps)
    if audit is not None and restored is None:
        found = audit(states)
        for outcome in outcomes:
            outcome.audited(found and found.shared(count))
    if loop.evaluate_first and restored is None:
        for each, state in enumerate(states):
            outcomes[each].metrics_first = evaluate(each, state.trainable)
    population = program.start(states)
    del states  # the population has them now: otherwise copies of all trainables would stay

    sources = [iter(each(done)) for each in batches]
    clock, examples = time.perf_counter(), 0.0
    for number in range(done + 1, loop.steps + 1):
        active = [each for each in range(count) if not outcomes[each].diverged]
        if not active:
            break
        given: list[Batch | None] = [None] * count
        for each in active:
            given[each] = batch = next(sources[each])
            outcomes[each].steps = number
            examples += float(batch["weight"].sum())
        population, values = program.step(population, given)
        evaluates = loop.evaluates(number)
        saves = evaluates or loop.due(loop.checkpoint_every, number)
        logs = loop.due(loop.log_every, number)
        if not (logs or saves):
            continue
        read = {name: np.asarray(value) for name, value in values.items()}
        seconds = (time.perf_counter() - clock) / len(active)
        for each in active:
            outcome, mine = outcomes[each], {n: float(value[each]) for n, value in read.items()}
            outcome.seconds += seconds
            state = program.pick(population, each) if saves else None
            finite = state is None or bool(leaves_finite(state.trainable))
            outcome.diverged = not (all_finite(mine) and finite)
            if logs or outcome.diverged:
                metrics[each].write(number, mine)
            if outcome.diverged or not evaluates or state is None:
                continue
            scores = evaluate(each, state.trainable)
            metrics[each].write(number, scores)
            if keep_best and all_finite(scores) and outcome.improves(loops[each], scores):
                best[each] = jax.tree.map(jnp.copy, state)
            outcome.evaluated(loops[each], scores)
        if progress is not None:
            progress(number, float(np.mean(read["loss"][active])), int(examples))
        if saves:
            now = {"now": program.stacked(population), "best": stack(best) if keep_best else {}}
            described = [dataclasses.asdict(outcome) for outcome in outcomes]
            for log in metrics:
                log.require()
            checkpoints.save(number, now, {"identity": dict(identity), "outcomes": described})
        clock = time.perf_counter()
    last = [program.pick(population, number) for number in range(count)]
    return [best[n] if keep_best and outcomes[n].best_step else last[n] for n in range(count)]
