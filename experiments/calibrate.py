"""How long trials will take, from a few real steps of one trial of each shape."""

import dataclasses
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from experiments.build import Experiment, build
from experiments.trials import Trial
from lora_jax import data, records

SHAPING = ("model", "data", "variant", "targets", "also_train", "quantize")
_REPEATS = 2


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of calls by the length of their batches: compilation once, then each call."""

    compile: float
    call: Mapping[int, float]

    def of(self, lengths: Mapping[int, int]) -> float:
        """So many calls of each length; what was not measured is interpolated by length."""
        total = 0.0
        (low, fast), (high, slow) = min(self.call.items()), max(self.call.items())
        for length, count in lengths.items():
            part = (length - low) / (high - low) if high > low else 0.0
            total += self.compile + count * (fast + part * (slow - fast))
        return total


def shape_of(config: Mapping[str, Any]) -> str:
    """What trials have in common that take the same time a step."""
    sizes = {name: config["train"][name] for name in ("batch_size", "accumulate")}
    return records.canonical({name: config[name] for name in SHAPING} | sizes)


def seconds(trials: Sequence[Trial]) -> list[float]:
    """The seconds of each trial in a process of its own that nobody disturbs, but for its start.

    Nothing is written, but token ids that are kept for all runs.
    """
    measured: dict[str, Callable[[dict[str, Any]], float]] = {}
    found = []
    for trial in trials:
        shape = shape_of(trial.config)
        if shape not in measured:
            measured[shape] = measure(trial.config)
        found.append(measured[shape](trial.config))
    return found


def measure(config: dict[str, Any]) -> Callable[[dict[str, Any]], float]:
    """Build a trial and time some of its steps; returns the seconds of a trial of this shape."""
    began = time.perf_counter()
    experiment = build(config)
    built = time.perf_counter() - began
    lengths = [batch.padded_length for batch in _plan(experiment)]
    step = _cost(_trainer(experiment), experiment, set(lengths))
    call = experiment.adapted_call(experiment.trainable)
    evaluated = Counter[int]()
    for name in ("validation", *experiment.task.extra):
        plan = data.eval_plan(
            experiment.encoded[name].lengths, experiment.batch_size, experiment.boundaries
        )
        evaluated.update(batch.padded_length for batch in plan)
    evaluation = _cost(call, experiment, set(evaluated))

    def of(config: dict[str, Any]) -> float:
        loop = dataclasses.replace(experiment.loop, steps=_steps(config, len(lengths)))
        times = sum(map(loop.evaluates, range(1, loop.steps + 1)))
        train = Counter(itertools.islice(itertools.cycle(lengths), loop.steps))
        compiling = evaluation.compile * len(evaluated)
        each = evaluation.of(evaluated) - compiling
        return built + step.of(train) + compiling + times * each

    return of


def _steps(config: Mapping[str, Any], epoch: int) -> int:
    section = config["train"]
    steps = max(1, round(epoch * section["epochs"]))
    return min(steps, section["max_steps"] or steps)


def _plan(experiment: Experiment) -> list[Any]:
    """The batches of one epoch."""
    split = experiment.encoded["train"]
    size, seed = experiment.batch_size, experiment.config["seed"]
    plan = data.BatchPlan(split.lengths, size, experiment.boundaries, seed)
    return list(itertools.islice(plan.start(0), math.ceil(len(split) / size)))


def _trainer(experiment: Experiment) -> Callable[[Any], Any]:
    """A step of training as a function of its batch."""
    step, state = experiment.make_step(), experiment.start()

    def call(batch: Any) -> Any:
        nonlocal state
        state, values = step(state, experiment.frozen, batch)
        return values

    return call


def _cost(call: Callable[[Any], Any], experiment: Experiment, lengths: set[int]) -> Cost:
    """Time a call at the shortest and the longest of some lengths."""
    compiling, each = [], {}
    split = experiment.encoded["train"]
    rows = list(range(min(experiment.batch_size, len(split))))
    for length in {min(lengths), max(lengths)}:
        batch = data.collate(split, rows, length, experiment.batch_size)
        first, *others = [_timed(call, batch) for _ in range(1 + _REPEATS)]
        each[length] = min(others)
        compiling.append(max(first - each[length], 0.0))
    return Cost(sum(compiling) / len(compiling), each)


def _timed(call: Callable[[Any], Any], batch: Any) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call(batch))
    return time.perf_counter() - began
