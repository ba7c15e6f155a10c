"""Time a sweep against one process for each trial, with start-up and compilation.

    python -m experiments.bench_trials --sizes=8x16 --trials=8 --steps=200

A size is BATCHxLENGTH: the examples of a step, and the tokens of each. For each size, the same
trials, which differ in learning rate and seed, are trained twice: by `experiments.train`, one
process after the other, and by `experiments.sweep`, as one program. Each line gives the seconds of
both and their ratio, how the trials stepped, and the largest difference between the losses of the
first logged step. Both times are of whole commands, with evaluation and saving. The files that all
of them need are read once before. `--executions` times the given ways to step; `chosen` is the way
that the sweep chooses.
"""

import dataclasses
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import cli
from experiments.analysis import recorded_runs
from experiments.runs.group_folder import found_by_timing, stepping
from lora_jax.records.metrics_log import read_metrics

_SIZES = flags.DEFINE_list(
    "sizes", ["8x16"], "Sizes to time, each BATCHxLENGTH, separated by commas."
)
_TRIALS = flags.DEFINE_integer("trials", 8, "How many trials to train.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 200, "How many steps each trial takes.", lower_bound=10)
_EXECUTIONS = flags.DEFINE_list(
    "executions", ["chosen"], "Ways to step: any of chosen, each, map and vmap."
)
_CONFIG = flags.DEFINE_string(
    "config", "configs/quickstart.py", "What to train; the flags replace its size and steps."
)

_SIZE = re.compile(r"([1-9][0-9]*)x([1-9][0-9]*)")
_WAYS = ("chosen", "each", "map", "vmap")


@dataclasses.dataclass(frozen=True)
class Size:
    """The number of examples in a step, and the length in tokens of each."""

    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"

    def settings(self, steps: int) -> list[str]:
        """The flags that give a config's runs this size and number of steps."""
        return [
            f"--config={_CONFIG.value}",
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


def bench() -> None:
    sizes = parse_sizes(_SIZES.value)
    for way in _EXECUTIONS.value:
        if way not in _WAYS:
            raise ValueError(f"--executions={way}: expected one of {', '.join(_WAYS)}")
    print(f"{_TRIALS.value} trials of {_STEPS.value} steps")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            _compare(size, Path(folder))


def _compare(size: Size, folder: Path) -> None:
    _alone(size, folder / "first", rates(2)[:1], steps=1)  # reads files and caches tokens
    alone = _alone(size, folder / "alone", rates(_TRIALS.value), _STEPS.value)
    for way in _EXECUTIONS.value:
        together = _together(size, folder / way, way)
        print(
            f"{size} ({size.batch * size.length} tokens a step): {_TRIALS.value} processes "
            f"{alone:.1f} s, one program {together:.1f} s, {alone / together:.2f} times as fast; "
            f"{_stepping(folder / way, way)}; first losses differ by at most "
            f"{_difference(folder / 'alone', folder / way):.1e}",
            flush=True,
        )


def _alone(size: Size, folder: Path, learning_rates: Sequence[str], steps: int) -> float:
    began = time.perf_counter()
    for seed, rate in enumerate(learning_rates):
        _run(
            "experiments.train",
            *size.settings(steps),
            f"--config.optimizer.learning_rate={rate}",
            f"--config.seed={seed}",
            f"--workdir={folder / str(seed)}",
        )
    return time.perf_counter() - began


def _together(size: Size, folder: Path, way: str) -> float:
    began = time.perf_counter()
    _run(
        "experiments.sweep",
        *size.settings(_STEPS.value),
        f"--sweep=config.optimizer.learning_rate={','.join(rates(_TRIALS.value))}",
        f"--sweep=config.seed=0:{_TRIALS.value}",
        "--zip",
        f"--workdir={folder}",
        *([] if way == "chosen" else [f"--execution={way}"]),
    )
    return time.perf_counter() - began


def _run(module: str, *arguments: str) -> None:
    line = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(line[1:])}: {(done.stderr or done.stdout).strip()}")


def _stepping(workdir: Path, way: str) -> str:
    """How the trials of a sweep stepped, as its worker says it."""
    if way != "chosen":
        return stepping(way, {})
    return stepping(*next(found_by_timing(workdir / "trials")))


def _difference(alone: Path, together: Path) -> float:
    """The largest difference between the first logged losses of the same trial."""
    first, second = _first_losses(alone), _first_losses(together)
    return max(abs(first[seed] - second[seed]) for seed in first)


def _first_losses(folder: Path) -> dict[int, float]:
    """The first logged loss of each run, by seed."""
    return {
        run.record.seed: next(
            row["loss"] for row in read_metrics(run.folder / "metrics.jsonl") if "loss" in row
        )
        for run in recorded_runs.find(folder)
    }


if __name__ == "__main__":
    cli.main(bench)
