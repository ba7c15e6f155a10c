"""Commands that are killed again and again, and then go on: their results are the same bits."""

import dataclasses
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from experiments.soaking import forked, inputs, results
from experiments.soaking.forked import Plan

TRIES = 4
"""How often a command is given again after the last kill; one trial of a killed worker waits for
the next command."""


@dataclasses.dataclass(frozen=True)
class Work:
    """A command, and what is compared of its folder."""

    name: str
    line: Callable[[Path], list[str]]
    """The command that works in a folder."""
    result: Callable[[Path], dict[str, str]] = results.of_folder
    share: int = 1
    """How many of the kills, beside the other commands' shares."""
    workers: bool = False
    """Whether the command starts processes that train."""


@dataclasses.dataclass
class Killed:
    """What became of a command that was killed."""

    work: str
    kills: int = 0
    by_time: int = 0
    by_change: int = 0
    of_worker: int = 0
    """Of the kills: at a drawn time, before a drawn change of a file, of a sweep's worker."""
    missed: int = 0
    """How often the command had ended before its kill."""
    rounds: int = 0
    """In how many folders; after one to three kills, the command goes on to its end."""
    seconds: float = 0.0
    """Of the command if nothing disturbs it."""
    changes: int = 0
    """Of files, by the command if nothing disturbs it."""
    wrong: list[str] = dataclasses.field(default_factory=list)
    """One line for each round whose result was another one, or that did not end."""


def works(given: inputs.Inputs, run: Path) -> list[Work]:
    """The commands that are killed.

    Args:
      run: a finished run, whose adapter is exported.
    """
    return [
        Work("train", lambda folder: inputs.train(given, folder / "run"), share=5),
        Work(
            "export-peft",
            lambda folder: inputs.export(run, folder / "out"),
            lambda folder: results.of_export(folder / "out"),
            share=2,
        ),
        Work(
            "export-merged",
            lambda folder: inputs.export(run, folder / "out", ("--as=merged",)),
            lambda folder: results.of_export(folder / "out"),
            share=1,
        ),
        Work("tune", lambda folder: inputs.tune(given, folder / "study"), share=4),
        Work("sweep", lambda folder: inputs.sweep(given, folder / "sweep"), share=2, workers=True),
    ]


def soak(
    work: Work,
    kills: int,
    seed: int,
    scratch: Path,
    environment: Mapping[str, str],
    found: Killed | None = None,
) -> Iterator[Killed]:
    """Kill a command `kills` times, and yield what is known after each round.

    The moments are drawn: half are times, even over the command's whole duration, and half are
    changes of files, so that each step of saving is met. A round ends with the command's own end.

    Args:
      found: what an earlier soak has found; this one goes on from there.
    """
    found = found or Killed(work.name)
    if found.kills >= kills:
        return
    wanted = _undisturbed(work, found, scratch / "undisturbed", environment)
    while found.kills < kills and found.missed < 5 * kills:
        drawn = random.Random(f"{seed} {work.name} {found.rounds}")
        folder = scratch / f"round-{found.rounds}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for _ in range(min(drawn.randint(1, 3), kills - found.kills)):
            _kill(work, found, folder, drawn, environment)
        found.rounds += 1
        if problem := _go_on(work, folder, wanted, environment):
            found.wrong.append(f"round {found.rounds}: {problem}")
        else:
            shutil.rmtree(folder)
        yield found


def _undisturbed(
    work: Work, found: Killed, folder: Path, environment: Mapping[str, str]
) -> dict[str, str]:
    """The result of the command without kills; the first time, programs are compiled."""
    count = folder.parent / "changes"
    result: dict[str, str] = {}
    for number in range(2):
        own = folder / str(number)
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        started = time.monotonic()
        ended = forked.run(work.line(own), environment, Plan(below=str(own), count=str(count)))
        found.seconds = time.monotonic() - started
        if ended.code:
            raise RuntimeError(f"{work.name} fails without a kill: {ended.err}")
        if result and (differs := results.difference(result, work.result(own))):
            raise RuntimeError(f"{work.name} gives two results without a kill: {differs}")
        result = work.result(own)
    found.changes = int(count.read_text(encoding="ascii"))
    if not result:
        raise RuntimeError(f"{work.name} leaves no result")
    return result


def _kill(
    work: Work,
    found: Killed,
    folder: Path,
    drawn: random.Random,
    environment: Mapping[str, str],
) -> None:
    """Start the command, and kill it at a moment that is drawn."""
    by_change = drawn.random() < 0.5
    at, of_worker = drawn.random(), work.workers and drawn.random() < 0.5
    if by_change and not of_worker:
        plan = Plan(kill_at=1 + int(at * found.changes), below=str(folder))
        ended = forked.run(work.line(folder), environment, plan)
        if ended.code == -signal.SIGKILL:
            found.kills, found.by_change = found.kills + 1, found.by_change + 1
        else:
            found.missed += 1
        return
    started = forked.Started(work.line(folder), environment)
    ended = started.end(at * found.seconds)
    if ended is not None:
        found.missed += 1
        return
    if of_worker and (children := started.children()):
        os.kill(children[-1], signal.SIGKILL)
        started.end()
        found.of_worker += 1
    else:
        started.kill()
        found.by_time += 1
    found.kills += 1


def _go_on(
    work: Work, folder: Path, wanted: Mapping[str, str], environment: Mapping[str, str]
) -> str:
    """Give the command again, and say what is wrong with its end or its result."""
    for _ in range(TRIES):
        ended = forked.run(work.line(folder), environment)
        if ended.code == 0:
            return results.difference(wanted, work.result(folder))
        done = work.result(folder)  # an export is there whole, or not at all
        if not work.workers and not results.difference(wanted, done):
            return ""
    return f"it does not end: code {ended.code}, {ended.line}"
