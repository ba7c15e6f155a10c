"""From the start of a process to the first step of its run, and what a second run compiles.

The run is one step of `--config` (the quickstart) by `experiments.train`, without the audit; its
first step is over when `metrics.jsonl` has a line. The cache of compiled programs is in a folder of
its own: the first run fills it, and what later runs of the same config add they have compiled.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from experiments.benchmarks.cases import Goal
from experiments.benchmarks.commands import seconds_until
from experiments.benchmarks.plan import Plan
from experiments.benchmarks.results import Found, Measured
from experiments.benchmarks.turns import in_turns
from experiments.command_names import command_line

AGAINST = ()
TURNS = 5

SECONDS, COMPILATIONS = Goal(6.0, 4.0), Goal(0.0, 0.0)


def run(plan: Plan) -> Iterator[Measured]:
    with tempfile.TemporaryDirectory() as name:
        folder, turn = Path(name), iter(range(10**6))
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
