"""Full disks, read-only and slow folders, clocks that jump, and two processes in one folder."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from experiments.soaking import forked, inputs, results
from experiments.soaking.forked import UNDISTURBED, Ended, Plan

SIZES = (8, 24, 48, 96, 128, 160, 200, 256)
"""KiB of disks that are too small for a run, which leaves about 0.5 MB."""
ENOUGH = 64 * 1024


@dataclasses.dataclass(frozen=True)
class Met:
    """What a command did in such a place."""

    case: str
    outcome: str
    """`one line, then the same` bits; `the same` bits at once; `one line`, and nothing is changed;
    `not tried`, with the reason; `wrong`."""
    said: str


def soak(
    given: inputs.Inputs, finished: Path, scratch: Path, environment: Mapping[str, str]
) -> Iterator[Met]:
    """Try all cases; the result that a run should have is that of `finished`."""
    wanted = results.of_folder(finished)

    def same(workdir: Path) -> str:
        return results.difference(wanted, results.of_folder(workdir))

    def start(workdir: Path, plan: Plan = UNDISTURBED) -> Ended:
        return forked.run(inputs.train(given, workdir), environment, plan)

    yield from _two(given, scratch / "two", environment, same)
    yield from _read_only(given, finished, scratch / "read-only", environment)
    for seed in (1, 2, 3):
        jumping = scratch / f"clock-{seed}" / "run"
        ended = start(jumping, Plan(clock=seed))
        yield _at_once(f"clock that jumps, seed {seed}", ended, same(jumping))
    slow = scratch / "slow" / "run"
    yield _at_once("slow folder", start(slow, Plan(below=str(slow), slow=0.01)), same(slow))
    yield from _full_disks(scratch / "disk", start, same)


def _full_disks(
    folder: Path, start: Callable[[Path], Ended], same: Callable[[Path], str]
) -> Iterator[Met]:
    folder.mkdir(exist_ok=True)
    if reason := _mount(folder, SIZES[0]):
        yield Met("full disk", "not tried", reason)
        return
    _unmount(folder)
    for size in SIZES:
        _mount(folder, size)
        try:
            first = start(folder / "run")
            grown = subprocess.run(
                ["mount", "-o", f"remount,size={ENOUGH}k", str(folder)], capture_output=True
            )
            case = f"full disk of {size} KiB"
            if grown.returncode:
                yield Met(case, "not tried", "the disk could not be made larger")
                continue
            second = start(folder / "run")
            problem = "" if second.code else same(folder / "run")
            if first.code == 0 and second.code == 0:
                yield _at_once(case, first, problem)
            elif first.one_error_line and second.code == 0 and not problem:
                yield Met(case, "one line, then the same", first.line)
            else:
                said = f"{first.code}: {first.line}; {second.code}: {second.line}; {problem}"
                yield Met(case, "wrong", said)
        finally:
            _unmount(folder)


def _read_only(
    given: inputs.Inputs, finished: Path, folder: Path, environment: Mapping[str, str]
) -> Iterator[Met]:
    """A finished run is read and exported; an unfinished one, and a new one, cannot go on."""
    shutil.copytree(finished, folder / "finished")
    shutil.copytree(finished, folder / "unfinished")
    for name in ("record.json", "adapter.safetensors", "predictions.npz"):
        (folder / "unfinished" / name).unlink()
    before = _state(folder)
    with _bound_read_only(folder) as reason:
        if reason:
            yield Met("read-only folder", "not tried", reason)
            return
        ended = forked.run(inputs.train(given, folder / "finished"), environment)
        yield _at_once("read-only folder, finished run", ended, "")
        for name in ("unfinished", "new"):
            ended = forked.run(inputs.train(given, folder / name), environment)
            clear = ended.one_error_line and _state(folder) == before
            outcome = "one line" if clear else "wrong"
            yield Met(f"read-only folder, {name} run", outcome, f"{ended.code}: {ended.line}")


def _two(
    given: inputs.Inputs,
    folder: Path,
    environment: Mapping[str, str],
    same: Callable[[Path], str],
) -> Iterator[Met]:
    """Two commands at once in one folder: one trains, the other says so and changes nothing."""
    workdir = folder / "run"
    line = inputs.train(given, workdir)
    first = forked.Started(line, environment, Plan(below=str(workdir), slow=0.05))
    while not (workdir / "config.json").exists() and first.process.is_alive():
        time.sleep(0.01)
    second = forked.run(line, environment)
    ended = first.end()
    assert ended is not None
    problem = same(workdir)
    clear = second.one_error_line or second.code == 0  # 0: it began after the first had ended
    right = ended.code == 0 and clear and not problem
    said = f"{ended.code}, {second.code}: {second.line}; {problem}"
    yield Met("two processes", "one line, then the same" if right else "wrong", said)


def _at_once(case: str, ended: Ended, problem: str) -> Met:
    right = ended.code == 0 and not problem
    said = "" if right else f"{ended.code}: {ended.line}; {problem}"
    return Met(case, "the same" if right else "wrong", said)


def _mount(folder: Path, size: int) -> str:
    """Mount a disk of `size` KiB in memory; say why that fails."""
    options = f"size={size}k"
    return _command(["mount", "-t", "tmpfs", "-o", options, "soak", str(folder)])


def _unmount(folder: Path) -> None:
    _command(["umount", "--lazy", str(folder)])


@contextlib.contextmanager
def _bound_read_only(folder: Path) -> Iterator[str]:
    """Let nobody write into a folder, not even the superuser; give the reason if that fails."""
    reason = _command(["mount", "--bind", str(folder), str(folder)])
    if reason:
        yield reason
        return
    try:
        yield _command(["mount", "-o", "remount,bind,ro", str(folder)])
    finally:
        _unmount(folder)


def _command(line: list[str]) -> str:
    if os.geteuid():
        return "only the superuser mounts disks"
    done = subprocess.run(line, capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""


def _state(folder: Path) -> dict[str, int]:
    return {str(each): each.stat().st_mtime_ns for each in sorted(folder.rglob("*"))}


def complete(found: list[Met]) -> bool:
    """Whether the last case has been tried, or could not be."""
    return bool(found) and found[-1].case in ("full disk", f"full disk of {SIZES[-1]} KiB")


def wrong(found: list[Met]) -> list[str]:
    """One line for each case in which something was lost, or not said in one line."""
    return [f"{each.case}: {each.said}" for each in found if each.outcome == "wrong"]
