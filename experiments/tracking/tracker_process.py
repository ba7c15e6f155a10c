"""The child process of a tracker, as the run sees it: nothing here waits for it until the end."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.cli import warn

_COMMAND = "from experiments.tracking.child import main; main()"
_TICK = 0.05  # seconds between looks at a child that is waited for


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
        self._where: dict[int, str] = {}
        self._failed: set[int] = set()
        self._warned = False
        self._process: subprocess.Popen[bytes] | None = None
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as errors:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _COMMAND, name],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    # The child finds the modules that this process finds.
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                    start_new_session=True,  # Ctrl-C reaches the run, which ends the child
                )
        except OSError as error:
            self._warn(str(error))
            return
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)

    def send(self, number: int, **order: Any) -> None:
        """Send an order about the run with this number."""
        self._unsent += json.dumps({"number": number, **order}).encode() + b"\n"
        self._exchange()

    def look(self) -> None:
        """Let the child look for new lines."""
        self._unsent = self._unsent or b"{}\n"
        self._exchange()

    def where(self, number: int, until: float) -> str | None:
        """Where the tracker has a run, once it has opened it; None if it has failed.

        Args:
          until: the time, by `time.monotonic`, when a child that has not answered is ended.
        """
        self._wait(lambda: number in self._where or number in self._failed, until)
        return self._where.get(number)

    def close(self, until: float) -> None:
        """Let the child end by itself; end it at a time (see `where`)."""
        self._wait(lambda: not self._unsent, until)
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._wait(lambda: self._process is None, until)

    def _wait(self, done: Callable[[], bool], until: float) -> None:
        while self._process is not None and not done():
            self._exchange()
            if self._process is None or done():
                return
            if time.monotonic() >= until:
                self._end("it was too slow at the end, and was ended")
                return
            select.select([self._process.stdout], [], [], _TICK)

    def _exchange(self) -> None:
        """Write what the pipe has room for, and read what the child has said."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._unsent and not self._process.stdin.closed:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                sent = os.write(self._process.stdin.fileno(), self._unsent)
                self._unsent = self._unsent[sent:]
        try:
            while said := os.read(self._process.stdout.fileno(), 1 << 16):
                self._heard += said
        except BlockingIOError:
            said = None
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            self._hear(json.loads(line))
        if said == b"":  # the child has ended, or will in a moment
            code = self._process.wait()
            self._end("" if code == 0 and self._process.stdin.closed else _ended(code))

    def _hear(self, answer: dict[str, Any]) -> None:
        if "failed" in answer:
            self._failed.add(answer["number"])
            self._warn(answer["failed"])
        else:
            self._where[answer["number"]] = answer["where"]

    def _end(self, why: str) -> None:
        """End the child and all that it has started; warn if it should not have ended."""
        process, self._process, self._unsent = self._process, None, b""
        assert process is not None
        with contextlib.suppress(OSError):  # they have ended already
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        if why:
            self._warn(why)

    def _warn(self, why: str) -> None:
        if not self._warned:
            said = " ".join(why.split())[:300]
            warn(
                f"--track={self.name}: {said}; the run goes on, metrics.jsonl has all ({self._log})"
            )
        self._warned = True


def _ended(code: int) -> str:
    how = f"ended with code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    return f"its process {how}"
