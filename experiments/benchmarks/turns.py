"""Time contenders in turns, so that what else the machine does hits them alike."""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from experiments.benchmarks.cases import Case
from experiments.command_environment import MALLOC

STEPS = 3
"""How many steps a turn has; its time is that of the fastest."""
PAUSE = 0.3
"""Seconds between turns, in which the threads of the last contender go to sleep."""

Take = Callable[[], list[float]]
"""Takes the steps of a turn and returns the seconds of each."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """The seconds of a step in each turn, by side; turns with the same number were neighbours."""

    case: Case
    seconds: dict[str, list[float]]

    def ratio(self, above: str, below: str) -> tuple[float, float, float]:
        """The median ratio of neighbouring turns, and its lower and upper quartile."""
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        low, middle, high = statistics.quantiles((one / other for one, other in pairs), n=4)
        return middle, low, high

    def least(self, side: str) -> float:
        return min(self.seconds[side])


def time_in_turns(case: Case, sides: Sequence[str], turns: int) -> Timing:
    """Time the training steps of a case, in turns, each side in a process of its own.

    Raises:
      ValueError: a contender ends with an error; its last line is in the message.
    """
    with contextlib.ExitStack() as stack:
        takes = {side: stack.enter_context(contender(side, case)) for side in sides}
        return Timing(case, in_turns(takes, turns))


def in_turns(takes: dict[str, Take], turns: int, pause: float = PAUSE) -> dict[str, list[float]]:
    """The seconds of the fastest step of each turn, by side, after one turn to warm up."""
    seconds: dict[str, list[float]] = {side: [] for side in takes}
    for turn in range(-1, turns):
        for side, take in takes.items():
            found = take()
            if turn >= 0:
                seconds[side].append(min(found))
            time.sleep(pause)
    return seconds


@contextlib.contextmanager
def contender(side: str, case: Case) -> Iterator[Take]:
    """Start the process of one side; it ends with this context."""
    line = [sys.executable, "-m", "experiments.benchmarks.contender", side]
    line += map(str, dataclasses.astuple(case))
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **MALLOC},
        )

        def take() -> list[float]:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(f"{STEPS}\n")
                process.stdin.flush()
            if answer := process.stdout.readline():
                return json.loads(answer)
            process.wait()
            errors.seek(0)
            said = errors.read().strip().splitlines() or ["it gives no reason"]
            raise ValueError(f"{side} cannot be timed: {said[-1]}")

        try:
            yield take
        finally:
            process.kill()
            process.communicate()
