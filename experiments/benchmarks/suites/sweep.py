"""A sweep as one program beside a process for each of its trials, with start-up and compilation.

The trials differ in learning rate and seed. They are trained by `experiments.train`, one process
after the other, and by `experiments.sweep`. Both times are of whole commands, with evaluation and
saving. The files that all of them need are read once before. `--sizes`, `--trials` and `--steps`
say what is trained, and `--executions` which ways to step are timed; `chosen` is the way that the
sweep chooses.
"""

import dataclasses
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.analysis import recorded_runs
from experiments.benchmarks.cases import Goal
from experiments.benchmarks.commands import seconds_of
from experiments.benchmarks.plan import Plan
from experiments.benchmarks.results import Found, Measured
from experiments.benchmarks.turns import in_turns
from experiments.command_names import command_line
from experiments.runs.group_folder import found_by_timing, stepping

AGAINST = ()
TURNS = 1

GOAL = Goal(2.2, 3.0)
"""For the seconds of the processes over those of the sweep."""
_SIZE = re.compile(r"([1-9][0-9]*)x([1-9][0-9]*)")
_WAYS = ("chosen", "each", "map", "vmap")
_SMALL: dict[str, int] = {"trials": 2, "steps": 10}


@dataclasses.dataclass(frozen=True)
class Size:
    """The number of examples in a step, and the length in tokens of each."""

    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"

    def settings(self, config: str, steps: int) -> list[str]:
        """The flags that give a config's runs this size and number of steps."""
        return [
            f"--config={config}",
            f"--config.train.batch_size={self.batch}",
            f"--config.train.max_steps={steps}",
            f"--config.data.max_length={self.length}",
            "--config.data.buckets=1",
            f"--config.data.validation={self.batch * 8}",
        ]


def parse_sizes(texts: Sequence[str]) -> list[Size]:
    """Parse sizes such as `8x16`.

    Raises:
      ValueError: a text of another form.
    """
    found = []
    for text in texts:
        if (match := _SIZE.fullmatch(text)) is None:
            raise ValueError(f"--sizes={text}: expected BATCHxLENGTH, such as 8x16")
        found.append(Size(int(match[1]), int(match[2])))
    return found


def rates(count: int) -> list[str]:
    """`count` learning rates from 1e-4 to 1e-3, evenly spaced in their logarithm."""
    return [f"{1e-4 * 10 ** (number / (count - 1)):.3g}" for number in range(count)]


def run(plan: Plan) -> Iterator[Measured]:
    sizes = parse_sizes(plan.sizes)
    for way in plan.executions:
        if way not in _WAYS:
            raise ValueError(f"--executions={way}: expected one of {', '.join(_WAYS)}")
    small = dataclasses.replace(plan, **_SMALL) if plan.smoke else plan
    return (_measure(size, small) for size in sizes)


def _measure(size: Size, plan: Plan) -> Measured:
    with tempfile.TemporaryDirectory() as name:
        folder, turn = Path(name), iter(range(10**6))
        settings = size.settings(plan.config, plan.steps)
        first = size.settings(plan.config, 1)
        _alone(first, folder / "first", rates(2)[:1])  # reads files and caches tokens
        last: dict[str, Path] = {}

        def new(way: str) -> Path:
            last[way] = folder / f"{way}-{next(turn)}"
            return last[way]

        def alone(_: int) -> list[float]:
            return [_alone(settings, new("processes"), rates(plan.trials))]

        def together(way: str, _: int) -> list[float]:
            return [_together(settings, new(way), rates(plan.trials), way)]

        takes = {"processes": alone}
        takes |= {way: lambda n, way=way: together(way, n) for way in plan.executions}
        seconds = in_turns(takes, plan.turns)
        facts = {
            way: {"first_loss_difference": difference(last["processes"], last[way])}
            for way in plan.executions
        }
        stepped = {way: {"stepped": how_stepped(last[way], way)} for way in plan.executions}
    ratios = [
        Found.of(
            f"processes/sweep, {way}",
            GOAL,
            [a / b for a, b in zip(seconds["processes"], seconds[way], strict=True)],
        )
        for way in plan.executions
    ]
    what = f"{plan.trials} trials of {plan.steps} steps of {size}"
    return Measured(what, {"processes": {}, **stepped}, seconds, facts, ratios)


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


def _together(
    settings: Sequence[str], folder: Path, learning_rates: Sequence[str], way: str
) -> float:
    return seconds_of(
        command_line("sweep"),
        *settings,
        f"--sweep=config.optimizer.learning_rate={','.join(learning_rates)}",
        f"--sweep=config.seed=0:{len(learning_rates)}",
        "--zip",
        f"--workdir={folder}",
        *([] if way == "chosen" else [f"--execution={way}"]),
    )


def how_stepped(workdir: Path, way: str) -> str:
    """How the trials of a sweep stepped, as its worker says it."""
    if way != "chosen":
        return stepping(way, {})
    return stepping(*next(found_by_timing(workdir / "trials")))


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
