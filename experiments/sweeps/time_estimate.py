"""Estimate the time that jobs take, from a few real steps of one trial of each program."""

import dataclasses
import itertools
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from configs.settings import RunConfig, TextConfig
from experiments.command_names import command_line
from experiments.runs import rungs
from experiments.setup.experiment import Experiment, build
from experiments.setup.load import load
from experiments.sweeps.grouping import program_key
from experiments.sweeps.jobs import Job
from lora_jax import data

_REPEATS = 2


@dataclasses.dataclass(frozen=True)
class Cost:
    """The seconds to compile a call for one batch length, and to make it with the longest batch.

    The cost of shorter batches is taken as proportional to their length, which is a little too low.
    """

    compile: float
    call: float
    longest: int

    def compiled(self, lengths: Mapping[int, int]) -> float:
        return self.compile * len(lengths)

    def called(self, lengths: Mapping[int, int]) -> float:
        """The seconds of the calls, given the number of calls of each length."""
        tokens = sum(length * count for length, count in lengths.items())
        return self.call * tokens / self.longest


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The seconds of a program and its trials."""

    program: float
    """Those that all trials share."""
    built: float
    """Those in which a trial is made."""
    trained: float
    """Those in which a trial trains to its last step and is evaluated."""
    steps: int

    def of(self, trials: int, halving: int = 0) -> float:
        """The seconds of `trials` trials, one after another in one program.

        Args:
          halving: at each rung, one of so many trials goes on; 0 trains all to the end.
        """
        whole = float(trials)
        if halving:
            whole = rungs.cost(rungs.plan(trials, self.steps, halving)) / self.steps
        return self.program + trials * self.built + whole * self.trained


def start_up() -> float:
    """The seconds until a new process is ready to begin a trial."""
    began = time.perf_counter()
    line = [*command_line("worker"), "--help"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def seconds(
    jobs: Sequence[Job], halving: int = 0, tell: Callable[[str], None] = print
) -> list[float]:
    """The seconds of each job, with compilation, if nothing else uses the machine.

    Nothing is written, except the caches that all runs use.

    Args:
      halving: as in `Estimate.of`.
    """
    measured: dict[str, Estimate] = {}
    found = []
    for job in jobs:
        key = program_key(job[0].config)
        if key not in measured:
            tell(f"timing a few steps of {job[0].name}")
            measured[key] = measure(job[0].config)
        found.append(measured[key].of(len(job), halving))
    return found


def measure(config: RunConfig) -> Estimate:
    """Build a trial, time some of its steps, and estimate its whole time.

    What an initialisation gathers from data is left out: trials that agree share it. So are texts
    that a language model writes (`writes`): how long these get, only a trained one knows.
    """
    began = time.perf_counter()
    loaded, read = load(config), time.perf_counter()
    experiment = build(config, loaded, placeholder_seen=True)
    built = time.perf_counter() - read
    step = _cost(experiment, _trainer(experiment), "train", experiment.first_epoch())
    call = experiment.adapted_call(experiment.trainable)
    forward = _cost(experiment, call, "validation", _scored(experiment, "validation"))
    batches = itertools.islice(experiment.plan().start(), experiment.loop.steps)
    trained = Counter(batch.padded_length for batch in batches)
    predicted = predictions(experiment)
    return Estimate(
        read - began + step.compiled(trained) + forward.compiled(predicted),
        built,
        step.called(trained) + forward.called(predicted),
        experiment.loop.steps,
    )


def writes(config: RunConfig) -> bool:
    """Whether a run ends with texts that its language model writes."""
    return isinstance(config, TextConfig) and config.generate.writes


def predictions(experiment: Experiment) -> Counter[int]:
    """How many batches a run predicts without training, by padded length."""
    loop, unlabelled = experiment.loop, experiment.texts.task.unlabelled
    times = sum(map(loop.evaluates, range(1, loop.steps + 1))) + loop.evaluate_first
    if experiment.config.train.select == "best":
        times += 1  # to store its outputs: they are kept of the last evaluation alone
    parts = dict.fromkeys(experiment.scored, times)
    found = Counter[int]()
    for part, count in {**parts, **dict.fromkeys(unlabelled, 1)}.items():
        for batch in _scored(experiment, part):
            found[batch.padded_length] += count
    return found


def _scored(experiment: Experiment, part: str) -> list[data.PlannedBatch]:
    """The batches in which a part is evaluated."""
    lengths = experiment.texts.encoded[part].lengths
    return data.eval_plan(lengths, experiment.batch_size, experiment.texts.boundaries)


def _trainer(experiment: Experiment) -> Callable[[Any], Any]:
    """A training step as a function of its batch."""
    step, state = experiment.make_step(), experiment.start()

    def call(batch: Any) -> Any:
        nonlocal state
        state, values = step(state, experiment.separated, batch)
        return values

    return call


def _cost(
    experiment: Experiment,
    call: Callable[[Any], Any],
    part: str,
    plan: Sequence[data.PlannedBatch],
) -> Cost:
    """Time a call on the longest batch of a plan for a part."""
    longest = max(plan, key=lambda batch: batch.padded_length)
    arrays = experiment.batch(part, longest)
    first, *others = [_timed(call, arrays) for _ in range(1 + _REPEATS)]
    return Cost(max(first - min(others), 0.0), min(others), longest.padded_length)


def _timed(call: Callable[[Any], Any], batch: Any) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call(batch))
    return time.perf_counter() - began
