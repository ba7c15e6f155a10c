"""Whole commands: sweeps beside processes, and the start of a run.

`sweep`: A sweep as one program beside a process for each of its trials, with start-up and
compilation. The trials differ in learning rate and seed. They are trained by `experiments.train`,
one process after the other, and by `experiments.sweep`. Both times are of whole commands, with
evaluation and saving. The files that all of them need are read once before. Each trial is the
quickstart with 200 steps of 8 x 16 tokens.

`start`: From the start of a process to the first step of its run, and what a second run compiles.

The run is one step of the quickstart by `experiments.train`, without the audit; its
first step is over when `metrics.jsonl` has a line. The cache of compiled programs is in a folder of
its own: the first run fills it, and what later runs of the same config add they have compiled.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.cases import Goal, Plan
from benchmarks.results import Found, Measured
from benchmarks.turns import Suite, in_turns, seconds_of
from experiments.command_names import command_line

SWEEP_GOAL = Goal(2.2, 3.0)
"""For the seconds of the processes over those of the sweep."""
SECONDS, COMPILATIONS = Goal(6.0, 4.0), Goal(0.0, 0.0)
CONFIG = "--config=configs/quickstart.py"
SIZE = "8x16"
SHAPE = {"train.batch_size": 8, "data.max_length": 16, "data.buckets": 1, "data.validation": 64}


def rates(count: int) -> list[str]:
    """`count` learning rates from 1e-4 to 1e-3, evenly spaced in their logarithm."""
    return [f"{1e-4 * 10 ** (number / (count - 1)):.3g}" for number in range(count)]


def _sweep(plan: Plan) -> Iterator[Measured]:
    trials, steps = (2, 10) if plan.smoke else (8, 200)
    settings = [CONFIG, *(f"--config.{name}={value}" for name, value in SHAPE.items())]
    settings.append(f"--config.train.max_steps={steps}")
    learning_rates = rates(trials)
    with tempfile.TemporaryDirectory() as name:
        folder, turn = Path(name), itertools.count()
        # Reads files and caches tokens.
        _alone([*settings, "--config.train.max_steps=1"], folder / "first", learning_rates[:1])

        def alone(_: int) -> list[float]:
            return [_alone(settings, folder / str(next(turn)), learning_rates)]

        def together(_: int) -> list[float]:
            return [_together(settings, folder / str(next(turn)), learning_rates)]

        seconds = in_turns({"processes": alone, "chosen": together}, plan.turns)
    pairs = zip(seconds["processes"], seconds["chosen"], strict=True)
    ratio = Found.of("processes/sweep, chosen", SWEEP_GOAL, [one / other for one, other in pairs])
    what = f"{trials} trials of {steps} steps of {SIZE}"
    yield Measured(what, {name: {} for name in seconds}, seconds, ratios=[ratio])


NO_CACHE = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
"""Every command compiles all its programs."""


def _alone(settings: Sequence[str], folder: Path, learning_rates: Sequence[str]) -> float:
    total = 0.0
    for seed, rate in enumerate(learning_rates):
        own = [f"--config.optimizer.learning_rate={rate}", f"--config.seed={seed}"]
        line = [*command_line("train"), *settings, *own, f"--workdir={folder / str(seed)}"]
        total += seconds_of(line, NO_CACHE)
    return total


def _together(settings: Sequence[str], folder: Path, learning_rates: Sequence[str]) -> float:
    own = [f"--sweep=config.optimizer.learning_rate={','.join(learning_rates)}", "--zip"]
    own += [f"--sweep=config.seed=0:{len(learning_rates)}", f"--workdir={folder}"]
    return seconds_of([*command_line("sweep"), *settings, *own], NO_CACHE)


SWEEP = Suite((), 1, _sweep)


def _start(plan: Plan) -> Iterator[Measured]:
    with tempfile.TemporaryDirectory() as name:
        folder, turn = Path(name), itertools.count()
        cache = folder / "cache"
        line = [*command_line("train"), CONFIG, "--config.train.max_steps=1"]
        line += ["--config.train.log_every=1", "--noaudit"]

        def start(_: int = 1) -> list[float]:
            run = folder / str(next(turn))
            settings = {"XDG_CACHE_HOME": str(cache)}
            return [seconds_of([*line, f"--workdir={run}"], settings, run / "metrics.jsonl")]

        cold = start()
        if not (before := programs(cache)):
            raise ValueError("the first run kept no program: unset JAX_COMPILATION_CACHE_DIR")
        warm = in_turns({"warm cache": start}, plan.turns)["warm cache"]
        added = len(programs(cache) - before)
    ratios = [
        Found.of("seconds to the first step, warm cache", SECONDS, warm),
        Found.of("compilations of a second run", COMPILATIONS, [float(added)]),
    ]
    seconds = {"cold cache": cold, "warm cache": warm}
    facts = {"cold cache": {"programs": float(len(before))}}
    yield Measured("start of a run", {name: {} for name in seconds}, seconds, facts, ratios)


def programs(cache: Path) -> set[str]:
    """The names of the programs in JAX's cache."""
    return {path.name for path in cache.rglob("*-cache")}


START = Suite((), 5, _start)
