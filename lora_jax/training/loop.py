"""The loop around a training step, which can be killed at any moment and continued."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.compiled.audit import Audit
from lora_jax.records.metrics_log import Metrics
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.step import Batch, Step, TrainState
from lora_jax.transform.placement import Frozen, Trainable


class Progress(Protocol):
    """A function that the loop calls at every step that it logs, for example a progress bar's."""

    def __call__(self, step: int, loss: float, examples: int) -> None: ...


@dataclasses.dataclass(frozen=True)
class Loop:
    """How many steps the loop runs, and how often it logs, evaluates and saves (0: at the end)."""

    steps: int
    log_every: int = 10
    evaluate_every: int = 0
    """Every evaluation also saves a checkpoint, so that the best one can be kept."""
    checkpoint_every: int = 0
    metric: str = "accuracy"
    """The metric that chooses the best evaluation."""
    mode: Literal["max", "min"] = "max"
    evaluations: int = 0
    """The number of evaluations, spread evenly: with the number of epochs, one for each epoch."""
    target: float | None = None
    """A score of `metric`; the outcome notes when it is first reached."""
    best_from: int = 0
    """The first step whose evaluation may be the best (that of the last step always may)."""
    evaluate_first: bool = False
    """Whether the weights are evaluated before the first step, too."""

    def due(self, every: int, step: int) -> bool:
        return step == self.steps or (every > 0 and step % every == 0)

    def evaluates(self, step: int) -> bool:
        passed, before = (self.evaluations * each // self.steps for each in (step, step - 1))
        return passed > before or self.due(self.evaluate_every, step)

    def reached(self, values: dict[str, float]) -> bool:
        """Whether an evaluation is as good as the target."""
        if self.target is None:
            return False
        value = values[self.metric]
        return value >= self.target if self.mode == "max" else value <= self.target

    def eligible(self, step: int) -> bool:
        """Whether the evaluation of a step may be the best."""
        return step >= min(self.best_from, self.steps)

    def better(self, new: dict[str, float], old: dict[str, float]) -> bool:
        if not old:
            return True
        new_value, old_value = new[self.metric], old[self.metric]
        return new_value > old_value if self.mode == "max" else new_value < old_value


@dataclasses.dataclass
class Outcome:
    """The results of a run so far; saved in every checkpoint and continued from there."""

    steps: int = 0
    seconds: float = 0.0
    """Seconds of training, with compilation, without evaluation; a continued run adds to them."""
    metrics_last: dict[str, float] = dataclasses.field(default_factory=dict)
    metrics_best: dict[str, float] = dataclasses.field(default_factory=dict)
    best_step: int | None = None
    target_step: int | None = None
    """The step of the first evaluation as good as `Loop.target`."""
    target_seconds: float | None = None
    """The seconds of training until that evaluation."""
    evaluations: list[dict[str, float]] | None = dataclasses.field(default_factory=list)
    """Step, seconds until then and `Loop.metric` of each evaluation. None if the run continued from
    an old checkpoint, which lacks the first ones."""
    diverged: bool = False
    metrics_first: dict[str, float] = dataclasses.field(default_factory=dict)
    """Metrics before the first step; empty if they were not asked for."""
    interrupted: bool = False
    """Whether this process was asked to end; never set in a checkpoint."""
    audit: dict[str, Any] | None = None
    """What `lora_jax.compiled.audit` found before the first step; None if it compared nothing."""

    def audited(self, found: Audit | None) -> None:
        """Record an audit, and add its seconds of compilation, which training need not repeat."""
        if found is not None:
            self.audit, self.seconds = found.values(), self.seconds + found.compiling

    def evaluated(self, loop: Loop, values: dict[str, float]) -> None:
        """Record the evaluation of the present step."""
        self.metrics_last = values
        self.diverged = not all_finite(values)
        if self.diverged:
            return
        if self.evaluations is not None:
            score = values[loop.metric]
            self.evaluations.append({"step": self.steps, "seconds": self.seconds, "score": score})
        if self.improves(loop, values):
            self.metrics_best, self.best_step = values, self.steps
        if self.target_step is None and loop.reached(values):
            self.target_step, self.target_seconds = self.steps, self.seconds

    def improves(self, loop: Loop, values: dict[str, float]) -> bool:
        """Whether an evaluation of the present step is eligible, and the best so far."""
        return loop.eligible(self.steps) and loop.better(values, self.metrics_best)


def fit(
    state: TrainState,
    frozen: Frozen,
    *,
    loop: Loop,
    step: Step,
    batches: Callable[[int], Iterable[Batch]],
    evaluate: Callable[[Trainable], dict[str, float]],
    checkpoints: Checkpoints,
    metrics: Metrics,
    identity: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    outcome: Outcome | None = None,
    interrupted: Callable[[int], bool] | None = None,
    audit: Callable[[TrainState], Audit | None] | None = None,
) -> tuple[TrainState, Outcome]:
    """Train to the end of `loop`, from the newest checkpoint if there is one.

    A process that is killed at any moment and started again ends with the same bits, on the same
    machine: the batch of a step depends on the step alone, random keys are folded from it, and
    lines of the metrics after the restored step are dropped. In a run of several processes, all
    call this and agree on what they evaluate; each reads its own copy of a step's metrics.

    Args:
      batches: gives the batches from a step on.
      evaluate: gives the metrics of the trainables.
      identity: digests of what the run depends on besides its state, kept in every checkpoint.
      outcome: filled in during the run, so that a caller that catches an error can see how far the
        run came.
      interrupted: called after each step, with its number. If true, that step is saved and the loop
        ends (`Outcome.interrupted`). It must tell all processes so at the same step.
      audit: called before the first step, with the state; raises if the compiled step is wrong.

    Returns:
      The last state, and the outcome. A loss or gradient that is not finite ends the run
      (`diverged`) at the next step that logs or saves. Weights or metrics that are not finite end
      it before they are saved, so the checkpoints hold a good state.

    Raises:
      ValueError: the newest checkpoint is of a run with another `identity`.
      LostFolderError: the file of the metrics was removed during the run; nothing more is saved.
    """
    outcome = Outcome() if outcome is None else outcome
    if (restored := checkpoints.restore(state)) is not None:
        state, meta, _ = restored
        for name, digest in meta["identity"].items():
            if (identity or {}).get(name) != digest:
                raise ValueError(
                    f"{checkpoints.folder} belongs to a run with other {name}; name another folder"
                )
        vars(outcome).update({"evaluations": None} | meta["outcome"])
    metrics.truncate(outcome.steps)
    if audit is not None and restored is None:
        outcome.audited(audit(state))
    if loop.evaluate_first and restored is None:
        outcome.metrics_first = evaluate(state.trainable)

    clock = time.perf_counter()
    weights: list[Any] = []
    examples = 0.0
    source = iter(batches(outcome.steps))
    for number in range(outcome.steps + 1, loop.steps + 1):
        batch = next(source)
        state, values = step(state, frozen, batch)
        outcome.steps = number
        weights.append(batch["weight"].sum())  # if it is a JAX array, it is waited for below
        evaluates = loop.evaluates(number)
        stops = interrupted is not None and interrupted(number)
        saves = stops or evaluates or loop.due(loop.checkpoint_every, number)
        logs = loop.due(loop.log_every, number)
        if not (logs or saves):
            continue  # dispatch the next step while this one runs
        read = {name: float(value) for name, value in values.items()}
        outcome.seconds += time.perf_counter() - clock
        # A step's loss is that of the weights before it; the weights after it are checked here.
        finite = all_finite(read) and (not saves or bool(leaves_finite(state.trainable)))
        outcome.diverged = not finite
        if logs or outcome.diverged:
            metrics.write(number, read)
        if outcome.diverged:
            break
        examples += sum(map(float, weights))
        weights.clear()
        if progress is not None:
            progress(number, read["loss"], int(examples))
        if evaluates:
            values = evaluate(state.trainable)
            metrics.write(number, values)
            outcome.evaluated(loop, values)
            if outcome.diverged:
                break
        if saves:
            meta = {"outcome": dataclasses.asdict(outcome), "identity": dict(identity or {})}
            scores = outcome.metrics_last if evaluates and loop.eligible(number) else {}
            metrics.require()
            checkpoints.save(number, state, meta | scores)
        if stops:
            outcome.interrupted = True
            break
        clock = time.perf_counter()
    return state, outcome


def all_finite(values: Mapping[str, float]) -> bool:
    return all(map(math.isfinite, values.values()))


@jax.jit
def leaves_finite(tree: Any) -> Array:
    """Whether all numbers of a pytree are finite."""
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
