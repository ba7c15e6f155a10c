"""The child process of a tracker, as the run sees it: nothing here waits for it until the end."""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from experiments.cli import warn

_COMMAND = "from experiments.tracking.child import main; main()"
TICK = 0.05  # seconds between looks at a child that is waited for
_LAST_BREATH = 1.0  # seconds for a child to end that has closed its pipe


@dataclasses.dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    orders: IO[bytes]
    answers: IO[bytes]

    @classmethod
    def start(cls, name: str, log: Path) -> "_Child":
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _COMMAND, name],  # not from the working folder
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                # The child finds the modules that this process finds.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
                start_new_session=True,  # Ctrl-C reaches the run, which ends the child
            )
        assert process.stdin is not None
        assert process.stdout is not None
        for pipe in (process.stdin, process.stdout):
            os.set_blocking(pipe.fileno(), False)
        return cls(process, process.stdin, process.stdout)

    def end(self) -> None:
        """End it and all that it has started."""
        with contextlib.suppress(OSError):  # they have ended already
            os.killpg(self.process.pid, signal.SIGKILL)
        self.orders.close()
        self.answers.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a file system may hold it
            self.process.wait(_LAST_BREATH)


class TrackerProcess:
    """Runs a tracker in a child process (`experiments.tracking.child`).

    Orders go through a pipe that never blocks: what it has no room for waits here, and orders to
    look for new lines are dropped then, as a later one does the same. If the tracker fails in any
    way, a warning line says so, once; the run goes on without it.

    Args:
      name: the tracker's name.
      log: the file for what the child prints.
    """

    def __init__(self, name: str, log: Path):
        self.name, self._log = name, log
        self._unsent, self._heard = b"", b""
        self._where: dict[int, str | None] = {}
        self._failed: set[int] = set()
        self._warned = False
        self._child: _Child | None = None
        try:
            self._child = _Child.start(name, log)
        except Exception as error:
            self._warn(str(error))

    def send(self, number: int, **order: Any) -> None:
        """Send an order about the run with this number."""
        if self._child is not None:
            self._unsent += json.dumps({"number": number, **order}).encode() + b"\n"
            self._exchange()

    def look(self) -> None:
        """Let the child look for new lines."""
        if self._child is not None:
            self._unsent = self._unsent or b"{}\n"
            self._exchange()

    def where(self, number: int, until: float) -> str | None:
        """Where the tracker has a run, once it has opened it; None if it has failed.

        Args:
          until: the time, by `time.monotonic`, when a child that has not answered is ended.
        """
        self._wait(lambda: number in self._where or number in self._failed, until)
        return self._where.get(number)

    def finish(self) -> bool:
        """Say that no more orders come, if all are sent; whether this has been said."""
        self._exchange()
        if self._unsent:
            return False
        if self._child is not None:
            self._child.orders.close()
        return True

    def close(self, until: float) -> None:
        """Let the child end by itself, after `finish`; end it at a time (see `where`)."""
        self._wait(lambda: False, until)

    def _wait(self, done: Callable[[], bool], until: float) -> None:
        while self._child is not None and not done():
            late = time.monotonic() >= until
            pipe = select.poll()  # `select.select` fails where a process has 1024 files open
            pipe.register(self._child.answers, select.POLLIN)
            pipe.poll(1000 * TICK)
            self._exchange()  # an answer may have been there before the time was up
            if late and self._child is not None and not done():
                self._end("it was too slow at the end of the run, and was ended")

    def _exchange(self) -> None:
        """Write what the pipe has room for, and read what the child has said."""
        try:
            if self._child is not None:
                self._write_and_read(self._child)
        except Exception as error:  # no error here may end the run
            self._end(f"{type(error).__name__}: {error}")

    def _write_and_read(self, child: _Child) -> None:
        if self._unsent and not child.orders.closed:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                sent = os.write(child.orders.fileno(), self._unsent)
                self._unsent = self._unsent[sent:]
        ended = False
        with contextlib.suppress(BlockingIOError):
            while said := os.read(child.answers.fileno(), 1 << 16):
                self._heard += said
            ended = True  # the pipe's other end is closed
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            self._hear(json.loads(line))
        if ended:
            asked = child.orders.closed
            try:
                code = child.process.wait(_LAST_BREATH)
            except subprocess.TimeoutExpired:
                self._end("its process has closed its pipe")
                return
            self._end("" if asked and code == 0 else _ended(code))

    def _hear(self, answer: dict[str, Any]) -> None:
        if "failed" in answer:
            self._failed.add(answer["number"])
            self._warn(answer["failed"])
        else:
            where = answer["where"]  # of whatever kind, as a record's text must be in UTF-8
            text = None if where is None else str(where).encode(errors="replace").decode()
            self._where[answer["number"]] = text

    def _end(self, why: str) -> None:
        """End the child; say why, unless that is empty."""
        child, self._child, self._unsent = self._child, None, b""
        if child is not None:
            child.end()
        if why:
            self._warn(why)

    def _warn(self, why: str) -> None:
        if not self._warned:
            said = " ".join(why.split())
            said = said if len(said) < 200 else f"{said[:200]}..."
            warn(
                f"--track={self.name}: {said}; the run goes on without it, and metrics.jsonl has "
                f"all (see {self._log})"
            )
        self._warned = True


def _ended(code: int) -> str:
    how = f"ended with code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    return f"its process {how}"
