"""How long trials will take, from a few real steps of one trial of each shape."""

import dataclasses
import itertools
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from experiments import make
from experiments.build import Experiment, build
from experiments.trials import Trial
from lora_jax import data, records

SHAPING = ("model", "data", "variant", "targets", "also_train", "quantize")
_REPEATS = 2


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of a call: to compile it for one length of its batches, and at the longest of them.

    Shorter batches are taken to cost less in proportion, which is a little too little for them.
    """

    compile: float
    call: float
    longest: int

    def of(self, lengths: Mapping[int, int], times: int = 1) -> float:
        """So many calls of each length, all of it so often."""
        tokens = sum(length * count for length, count in lengths.items())
        return self.compile * len(lengths) + times * self.call * tokens / self.longest


def shape_of(config: Mapping[str, Any]) -> str:
    """What trials have in common that take the same time a step."""
    sizes = {name: config["train"][name] for name in ("batch_size", "accumulate")}
    return records.canonical({name: config[name] for name in SHAPING} | sizes)


def start_up() -> float:
    """The seconds until a process of this program could begin with a trial."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import experiments.run"], check=True)
    return time.perf_counter() - began


def seconds(trials: Sequence[Trial], tell: Callable[[str], None] = print) -> list[float]:
    """The seconds of each trial, compilation included, if nobody disturbs it.

    Nothing is written, but token ids that are kept for all runs.
    """
    measured: dict[str, Callable[[dict[str, Any]], float]] = {}
    found = []
    for trial in trials:
        shape = shape_of(trial.config)
        if shape not in measured:
            tell(f"timing a few steps of {trial.name}")
            measured[shape] = measure(trial.config)
        found.append(measured[shape](trial.config))
    return found


def measure(config: dict[str, Any]) -> Callable[[dict[str, Any]], float]:
    """Build a trial and time some of its steps; returns the seconds of a trial of this shape."""
    began = time.perf_counter()
    experiment = build(config)
    built = time.perf_counter() - began
    split, size = experiment.encoded["train"], experiment.batch_size
    plan = data.BatchPlan(split.lengths, size, experiment.boundaries, config["seed"])
    epoch = list(itertools.islice(plan.start(0), plan.steps_per_epoch))
    step = _cost(_trainer(experiment), split, epoch, size)

    scored, parts = list[data.Batch](), ("validation", *experiment.task.extra)
    for part in parts:
        scored += data.eval_plan(experiment.encoded[part].lengths, size, experiment.boundaries)
    validation = experiment.encoded["validation"]
    own = data.eval_plan(validation.lengths, size, experiment.boundaries)
    forward = _cost(experiment.adapted_call(experiment.trainable), validation, own, size)
    evaluated = Counter(batch.padded_length for batch in scored)

    def of(config: dict[str, Any]) -> float:
        loop = make.make_loop(config["train"], len(split), experiment.loop.metric)
        lengths = [batch.padded_length for batch in epoch]
        trained = Counter(itertools.islice(itertools.cycle(lengths), loop.steps))
        times = sum(map(loop.evaluates, range(1, loop.steps + 1)))
        return built + step.of(trained) + forward.of(evaluated, times)

    return of


def _trainer(experiment: Experiment) -> Callable[[Any], Any]:
    """A step of training as a function of its batch."""
    step, state = experiment.make_step(), experiment.start()

    def call(batch: Any) -> Any:
        nonlocal state
        state, values = step(state, experiment.frozen, batch)
        return values

    return call


def _cost(
    call: Callable[[Any], Any], split: data.Encoded, plan: Sequence[data.Batch], size: int
) -> Cost:
    """Time a call on a longest batch of a plan."""
    longest = max(plan, key=lambda batch: batch.padded_length)
    arrays = data.collate(split, longest.indices, longest.padded_length, size)
    first, *others = [_timed(call, arrays) for _ in range(1 + _REPEATS)]
    return Cost(max(first - min(others), 0.0), min(others), longest.padded_length)


def _timed(call: Callable[[Any], Any], batch: Any) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call(batch))
    return time.perf_counter() - began
