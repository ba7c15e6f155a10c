"""Whole commands: sweeps beside processes, and the start of a run.

`sweep`: A sweep as one program beside a process for each of its trials, with start-up and
compilation. The trials differ in learning rate and seed. They are trained by `experiments.train`,
one process after the other, and by `experiments.sweep`. Both times are of whole commands, with
evaluation and saving. The files that all of them need are read once before. `--sizes`, `--trials`
and `--steps` say what is trained.

`start`: From the start of a process to the first step of its run, and what a second run compiles.

The run is one step of `--config` (the quickstart) by `experiments.train`, without the audit; its
first step is over when `metrics.jsonl` has a line. The cache of compiled programs is in a folder of
its own: the first run fills it, and what later runs of the same config add they have compiled.
"""

import dataclasses
import itertools
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.cases import Goal, Plan
from benchmarks.results import Found, Measured
from benchmarks.suites.suite import Suite
from benchmarks.turns import in_turns, seconds_of, seconds_until
from experiments.analysis import recorded_runs
from experiments.command_names import command_line
from experiments.runs.group_folder import found_by_timing, stepping

SWEEP_GOAL = Goal(2.2, 3.0)
"""For the seconds of the processes over those of the sweep."""
SECONDS, COMPILATIONS = Goal(6.0, 4.0), Goal(0.0, 0.0)


def sweep_settings(size: str, plan: Plan) -> list[str]:
    """The flags of runs with batches of a size, such as `8x16` (examples and tokens).

    Raises:
      ValueError: a text of another form.
    """
    if (match := re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", size)) is None:
        raise ValueError(f"--sizes={size}: expected BATCHxLENGTH, such as 8x16")
    batch, length = match.groups()
    settings = {"train.batch_size": batch, "train.max_steps": plan.steps, "data.buckets": 1}
    settings |= {"data.max_length": length, "data.validation": 8 * int(batch)}
    return [f"--config={plan.config}", *(f"--config.{n}={value}" for n, value in settings.items())]


def rates(count: int) -> list[str]:
    """`count` learning rates from 1e-4 to 1e-3, evenly spaced in their logarithm."""
    return [f"{1e-4 * 10 ** (number / (count - 1)):.3g}" for number in range(count)]


def _sweeps(plan: Plan) -> Iterator[Measured]:
    small = dataclasses.replace(plan, trials=2, steps=10) if plan.smoke else plan
    settings = {size: sweep_settings(size, small) for size in plan.sizes}
    return (_sweep(size, settings[size], small) for size in settings)


def _sweep(size: str, settings: Sequence[str], plan: Plan) -> Measured:
    learning_rates = rates(plan.trials)
    with tempfile.TemporaryDirectory() as name:
        folder, turn = Path(name), itertools.count()
        # Reads files and caches tokens.
        _alone([*settings, "--config.train.max_steps=1"], folder / "first", learning_rates[:1])
        last: dict[str, Path] = {}

        def alone(_: int) -> list[float]:
            last["alone"] = folder / f"alone-{next(turn)}"
            return [_alone(settings, last["alone"], learning_rates)]

        def together(_: int) -> list[float]:
            last["chosen"] = folder / f"chosen-{next(turn)}"
            return [_together(settings, last["chosen"], learning_rates)]

        seconds = in_turns({"processes": alone, "chosen": together}, plan.turns)
        facts = {"chosen": {"first_loss_difference": difference(last["alone"], last["chosen"])}}
        stepped = stepping(*next(found_by_timing(last["chosen"] / "trials")))
    pairs = zip(seconds["processes"], seconds["chosen"], strict=True)
    ratio = Found.of("processes/sweep, chosen", SWEEP_GOAL, [one / other for one, other in pairs])
    what = f"{plan.trials} trials of {plan.steps} steps of {size}"
    contenders = {"processes": {}, "chosen": {"stepped": stepped}}
    return Measured(what, contenders, seconds, facts, [ratio])


def _alone(settings: Sequence[str], folder: Path, learning_rates: Sequence[str]) -> float:
    return sum(
        seconds_of(
            command_line("train"),
            *settings,
            f"--config.optimizer.learning_rate={rate}",
            f"--config.seed={seed}",
            f"--workdir={folder / str(seed)}",
        )
        for seed, rate in enumerate(learning_rates)
    )


def _together(settings: Sequence[str], folder: Path, learning_rates: Sequence[str]) -> float:
    own = [f"--sweep=config.optimizer.learning_rate={','.join(learning_rates)}", "--zip"]
    own += [f"--sweep=config.seed=0:{len(learning_rates)}", f"--workdir={folder}"]
    return seconds_of(command_line("sweep"), *settings, *own)


def difference(alone: Path, together: Path) -> float:
    """The largest difference between the first logged losses of the same trial."""
    first, second = _first_losses(alone), _first_losses(together)
    return max(abs(first[seed] - second[seed]) for seed in first)


def _first_losses(folder: Path) -> dict[int, float]:
    """The first logged loss of each run, by seed."""
    return {
        run.record.seed: next(row["loss"] for row in run.metrics() if "loss" in row)
        for run in recorded_runs.find(folder)
    }


SWEEP = Suite((), 1, _sweeps)


def _start(plan: Plan) -> Iterator[Measured]:
    with tempfile.TemporaryDirectory() as name:
        folder, turn = Path(name), itertools.count()
        cache = folder / "cache"
        settings = {"XDG_CACHE_HOME": str(cache)}

        def start(_: int = 1) -> list[float]:
            workdir = folder / str(next(turn))
            return [
                seconds_until(
                    workdir / "metrics.jsonl",
                    command_line("train"),
                    f"--config={plan.config}",
                    "--config.train.max_steps=1",
                    "--config.train.log_every=1",
                    "--noaudit",
                    f"--workdir={workdir}",
                    settings=settings,
                )
            ]

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
