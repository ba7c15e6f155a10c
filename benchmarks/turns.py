"""Suites, and their contenders in turns, so that what else the machine does hits them alike."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.cases import Contender, Group, Plan, chosen, smaller
from benchmarks.results import Measured
from experiments.command_names import MALLOC

PAUSE = 0.3
"""Seconds between turns, in which the threads of the last contender go to sleep."""

Take = Callable[[int], list[float]]
"""Works so many times, and returns the seconds of each."""
Facts = dict[str, float]


def time_in_turns(group: Group, turns: int) -> tuple[dict[str, list[float]], dict[str, Facts]]:
    """Time the contenders of a group, each in a process of its own.

    Returns:
      The seconds of each turn, and the facts, both by the names of the contenders.

    Raises:
      ValueError: a contender ends with an error; its last line is in the message.
    """
    with contextlib.ExitStack() as stack:
        started = {
            name: stack.enter_context(process(each)) for name, each in group.contenders.items()
        }
        takes = {name: take for name, (take, _) in started.items()}
        seconds = in_turns(takes, turns, group.repeats)
        return seconds, {name: facts for name, (_, facts) in started.items()}


def in_turns(
    takes: Mapping[str, Take], turns: int, repeats: int = 1, pause: float = PAUSE
) -> dict[str, list[float]]:
    """The seconds of the fastest work of each turn, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in takes}
    for _ in range(turns):
        for name, take in takes.items():
            seconds[name].append(min(take(repeats)))
            time.sleep(pause)
    return seconds


def facts_of(contender: Contender) -> Facts:
    """The facts of a contender, which works only once.

    Raises:
      ValueError: as `time_in_turns`.
    """
    with process(contender) as (_, facts):
        return facts


@contextlib.contextmanager
def process(contender: Contender) -> Iterator[tuple[Take, Facts]]:
    """Start the process of a contender, which has worked once; it ends with this context."""
    line = [sys.executable, "-m", "benchmarks.contenders"]
    line.append(json.dumps(dataclasses.asdict(contender)))
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        child = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # The last line of an error is then its own.
            env={**os.environ, **MALLOC, "JAX_TRACEBACK_FILTERING": "off"},
        )

        def answer() -> str:
            assert child.stdout is not None
            if line := child.stdout.readline():
                return line
            child.wait()
            errors.seek(0)
            said = errors.read().strip().splitlines() or ["it gives no reason"]
            raise ValueError(f"{contender.side} cannot be timed: {said[-1]}")

        def take(repeats: int) -> list[float]:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(f"{repeats}\n")
                child.stdin.flush()
            return json.loads(answer())

        try:
            yield take, json.loads(answer())
        finally:
            child.kill()
            child.communicate()


@dataclasses.dataclass(frozen=True)
class Suite:
    """A value of `--suite`."""

    against: tuple[str, ...]
    """The values that `--against` may have."""
    turns: int
    run: Callable[[Plan], Iterator[Measured]]
    """Measures, and yields what it has found, one group after the other."""


def measure(groups: Iterable[Group], plan: Plan) -> Iterator[Measured]:
    """Time the chosen groups, one after the other, in their turns."""
    for group in chosen(groups, plan):
        small = smaller(group) if plan.smoke else group
        yield Measured.of(small, *time_in_turns(small, plan.turns))


def seconds_of(
    line: Sequence[str], settings: Mapping[str, str], until: Path | None = None
) -> float:
    """The seconds of a whole command, or until it has written a line to a file.

    The command goes on to its end.

    Args:
      settings: environment variables, in addition to those of this process.

    Raises:
      ValueError: it fails, or never writes the line; the message is its own.
    """
    environment = {**os.environ, **settings}
    began = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as said,
        subprocess.Popen(line, stdout=said, stderr=said, env=environment) as child,
    ):
        while child.poll() is None and not _has_line(until):
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        if child.wait() or (until is not None and not _has_line(until)):
            said.seek(0)
            raise ValueError(f"{' '.join(line[1:])}: {said.read().strip()}")
    return seconds


def _has_line(path: Path | None) -> bool:
    return path is not None and path.exists() and b"\n" in path.read_bytes()
