"""Commands that are killed again and again, and then go on: their results are the same bits."""

import dataclasses
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from experiments.soaking import forked, inputs, results
from experiments.soaking.forked import Plan

TRIES = 4
"""How often a command is given again after the last kill; one trial of a killed worker waits for
the next command."""
EQUAL = "equal"
"""The outcome of a round whose result has the same bits as without kills."""


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


@dataclasses.dataclass(frozen=True)
class Kill:
    """One kill of a command, at a moment that was drawn."""

    kind: Literal["time", "change", "worker"]
    """At a time, before a change of a file, or at a time of a sweep's worker."""
    at: float
    """Seconds since the command began, or the number of the change, from 1 on."""
    missed: bool
    """Whether the command had ended before."""


@dataclasses.dataclass(frozen=True)
class Round:
    """What became of a command in one folder: kills, then the command goes on to its end."""

    work: str
    number: int
    """From 1 on. The seed, the command and this number draw the kinds and the moments."""
    seconds: float
    """Of the command if nothing disturbs it, as times of kills are drawn over it."""
    changes: int
    """Of files, by the command if nothing disturbs it."""
    kills: list[Kill]
    outcome: str
    """`equal`, or what differs from the result without kills, or why the command does not end."""

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """The round of a row of a file, which `dataclasses.asdict` made."""
        return cls(**{**row, "kills": [Kill(**each) for each in row["kills"]]})


class _Undisturbed(NamedTuple):
    """A command without kills."""

    result: Mapping[str, str]
    seconds: float
    changes: int


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
    before: Sequence[Round] = (),
) -> Iterator[Round]:
    """Kill a command `kills` times, and yield each round when it has ended.

    The moments are drawn: half are times, even over the command's whole duration, and half are
    changes of files, so that each step of saving is met. A round ends with the command's own end.

    Args:
      before: the rounds of an earlier soak; this one goes on from there.
    """
    rounds = list(before)
    done, missed = _met(rounds), _missed(rounds)
    if done >= kills:
        return
    whole = _undisturbed(work, scratch / "undisturbed", environment)
    while done < kills and missed < 5 * kills:
        number = len(rounds)
        drawn = random.Random(f"{seed} {work.name} {number}")
        folder = scratch / f"round-{number + 1}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        count = min(drawn.randint(1, 3), kills - done)
        tried = [_kill(work, whole, folder, drawn, environment) for _ in range(count)]
        problem = _go_on(work, folder, whole.result, environment)
        if not problem:
            shutil.rmtree(folder)
        own = whole.seconds, whole.changes, tried, problem or EQUAL
        rounds.append(Round(work.name, number + 1, *own))
        done, missed = _met(rounds), _missed(rounds)
        yield rounds[-1]


def counts(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """A row for each command: its kills by kind, those that it missed, and its rounds."""
    rows = []
    for name in dict.fromkeys(each.work for each in rounds):
        mine = [each for each in rounds if each.work == name]
        kinds = Counter(kill.kind for each in mine for kill in each.kills if not kill.missed)
        by = {"by_time": "time", "by_change": "change", "of_worker": "worker"}
        rows.append(
            {
                "work": name,
                "kills": kinds.total(),
                **{column: kinds[kind] for column, kind in by.items()},
                "rounds": len(mine),
                "missed": _missed(mine),
            }
        )
    return rows


def wrong(rounds: Sequence[Round]) -> list[str]:
    """One line for each round whose result was another one, or that did not end."""
    return [
        f"{each.work}, round {each.number}: {each.outcome}"
        for each in rounds
        if each.outcome != EQUAL
    ]


def _met(rounds: Sequence[Round]) -> int:
    return sum(not kill.missed for each in rounds for kill in each.kills)


def _missed(rounds: Sequence[Round]) -> int:
    return sum(kill.missed for each in rounds for kill in each.kills)


def _undisturbed(work: Work, folder: Path, environment: Mapping[str, str]) -> _Undisturbed:
    """The command without kills; the first time, programs are compiled."""
    count = folder.parent / "changes"
    result: dict[str, str] = {}
    seconds = 0.0
    for number in range(2):
        own = folder / str(number)
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        started = time.monotonic()
        ended = forked.run(work.line(own), environment, Plan(below=str(own), count=str(count)))
        seconds = round(time.monotonic() - started, 4)
        if ended.code:
            raise RuntimeError(f"{work.name} fails without a kill: {ended.err}")
        if result and (differs := results.difference(result, work.result(own))):
            raise RuntimeError(f"{work.name} gives two results without a kill: {differs}")
        result = work.result(own)
    if not result:
        raise RuntimeError(f"{work.name} leaves no result")
    return _Undisturbed(result, seconds, int(count.read_text(encoding="ascii")))


def _kill(
    work: Work,
    whole: _Undisturbed,
    folder: Path,
    drawn: random.Random,
    environment: Mapping[str, str],
) -> Kill:
    """Start the command, and kill it at a moment that is drawn."""
    by_change = drawn.random() < 0.5
    at, of_worker = drawn.random(), work.workers and drawn.random() < 0.5
    if by_change and not of_worker:
        number = 1 + int(at * whole.changes)
        plan = Plan(kill_at=number, below=str(folder))
        ended = forked.run(work.line(folder), environment, plan)
        return Kill("change", number, missed=ended.code != -signal.SIGKILL)
    seconds = round(at * whole.seconds, 4)
    started = forked.Started(work.line(folder), environment)
    if started.end(seconds) is not None:
        return Kill("worker" if of_worker else "time", seconds, missed=True)
    if of_worker and (children := started.children()):
        os.kill(children[-1], signal.SIGKILL)
        started.end()
        return Kill("worker", seconds, missed=False)
    started.kill()
    return Kill("time", seconds, missed=False)


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
