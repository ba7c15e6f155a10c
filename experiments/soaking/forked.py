"""Commands in processes of their own, forks of one that has imported what all of them import.

A new interpreter imports for seconds, which is longer than a tiny run trains. A `Plan` changes what
happens around a command: it is killed at the n-th change of a file, or each change takes longer, or
the clock jumps.
"""

import atexit
import contextlib
import dataclasses
import multiprocessing
import os
import random
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["experiments.runs.run", "experiments.soaking.inputs", "experiments.exports.formats.peft"]
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens to a process."""

    kill_at: int = 0
    """The number of the change of a file, from 1 on, before which it is killed; 0 for never."""
    below: str = ""
    """Only changes below this folder count."""
    count: str = ""
    """A file that gets the number of changes in the end."""
    slow: float = 0.0
    """Seconds that each change takes longer."""
    clock: int = 0
    """A seed of jumps of the clock by up to ten years, forwards and backwards; 0 for none."""


UNDISTURBED = Plan()


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended: the exit code (negative: the signal) and what it printed."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The last line on standard error."""
        lines = self.err.strip().splitlines()
        return lines[-1] if lines else ""

    @property
    def one_error_line(self) -> bool:
        """Whether it ended as a command should: one `error:` line, code 1 or 2, no traceback."""
        errors = [each for each in self.err.splitlines() if each.startswith("error: ")]
        return self.code in (1, 2) and len(errors) == 1 and "Traceback" not in self.err


class Started:
    """`python -m MODULE ARGUMENTS`, started in the folder of this process."""

    def __init__(
        self, line: Sequence[str], environment: Mapping[str, str], plan: Plan = UNDISTURBED
    ):
        self._streams = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        names = [each.name for each in self._streams]
        given = list(line), {**os.environ, **environment}, names, plan, os.getcwd()
        self.process = _CONTEXT.Process(target=_run, args=given, daemon=False)
        with _without_main():
            self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def end(self, seconds: float | None = 300) -> Ended | None:
        """Wait for its end for so long; None if it still runs."""
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            return None
        out, err = (each.read() for each in self._streams)
        for each in self._streams:
            each.close()
        return Ended(code, out, err)

    def kill(self) -> Ended:
        """Send SIGKILL, and wait."""
        self.process.kill()
        ended = self.end(60)
        assert ended is not None
        return ended

    def children(self) -> list[int]:
        """The processes that it has started itself."""
        try:
            text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except OSError:
            return []
        return [int(each) for each in text.split()]


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Let a new process not import this one's main module, whose flags are other ones."""
    main = sys.modules["__main__"]
    spec, file = main.__spec__, vars(main).pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


def run(line: Sequence[str], environment: Mapping[str, str], plan: Plan = UNDISTURBED) -> Ended:
    """A command, when it has ended; it gets five minutes."""
    started = Started(line, environment, plan)
    ended = started.end()
    if ended is None:
        started.kill()
        raise TimeoutError(f"{' '.join(line)} took more than 300 s")
    return ended


def _run(
    line: list[str], environment: dict[str, str], streams: list[str], plan: Plan, folder: str
) -> None:
    for number, name in enumerate(streams, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if plan.clock:
        _jumping_clock(plan.clock)
    changes = _watched(plan)
    sys.argv = line
    try:
        runpy.run_module(line[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves these out
        if plan.count:
            Path(plan.count).write_text(str(changes[0]), encoding="ascii")


def _watched(plan: Plan) -> list[int]:
    """Count the changes of files below the plan's folder from now on, and do what it says."""
    changes = [0]
    below = plan.below

    def watch(event: str, given: tuple) -> None:
        if event == "open":
            path, mode, flags = given
            writes = isinstance(mode, str) and any(each in mode for each in "wax+")
            if not (writes or (mode is None and (flags or 0) & _WRITES)):
                return
        elif event in _CHANGES:
            path = given[0]
        else:
            return
        if not isinstance(path, str | bytes | os.PathLike) or below not in os.fsdecode(path):
            return
        changes[0] += 1
        if changes[0] == plan.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if plan.slow:
            time.sleep(plan.slow)

    if below:
        sys.addaudithook(watch)
    return changes


def _jumping_clock(seed: int) -> None:
    """Let the clock of this process jump at each look; the monotonic clocks stay what they are."""
    drawn, true = random.Random(seed), time.time
    most = 10 * 365 * 24 * 3600

    def jumping() -> float:
        return true() + drawn.uniform(-most, most)

    time.time = jumping
    time.time_ns = lambda: int(jumping() * 1e9)
