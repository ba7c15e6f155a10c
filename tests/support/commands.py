"""Commands in processes of their own, forks of one that has imported what all of them import.

A new interpreter takes five seconds for that, which is more than most commands then compute.
SciPy's statistics, which reports and tables import, take almost another one.
"""

import atexit
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["experiments.runs.run", "scipy.stats"])


class Started:
    """`python -m MODULE ARGUMENTS`, or `python FILE.py ARGUMENTS`, started in `folder`.

    `environment` is added to that of this process; what JAX reads as it is imported, but for
    XLA_FLAGS, stays as it was when the first of these was started. `before` is called in the new
    process, before the command is.
    """

    def __init__(
        self,
        *line: object,
        folder: Path = ROOT,
        before: Callable[[], None] | None = None,
        **environment: str,
    ):
        self.line = [str(each) for each in line]
        self.streams = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        names = [each.name for each in self.streams]
        arguments = (self.line, folder, {**os.environ, **environment}, names, before)
        self.process = CONTEXT.Process(target=_run, args=arguments, daemon=True)
        self.process.start()

    @property
    def running(self) -> bool:
        """To be asked again and again: it waits for a moment."""
        self.process.join(0.01)
        return self.process.is_alive()

    def send(self, signal: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal)

    def said(self) -> str:
        """What it has printed so far."""
        return Path(self.streams[0].name).read_text(encoding="utf-8")

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        for each in self.streams:
            each.close()

    def end(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait for it; it does not outlive this."""
        self.process.join(timeout)
        code = self.process.exitcode
        out, err = (each.read() for each in self.streams)
        self.kill()
        if code is None:
            raise TimeoutError(f"{self.line}: {timeout} s\n{out}\n{err}")
        return subprocess.CompletedProcess(self.line, code, out, err)


def run(*line: object, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, when it has ended."""
    return Started(*line, folder=folder, **environment).end()


def with_devices(count: int) -> dict[str, str]:
    """The environment of a process that has as many devices."""
    return {"XLA_FLAGS": re.sub(r"(device_count)=\d+", rf"\1={count}", os.environ["XLA_FLAGS"])}


def _run(
    line: list[str],
    folder: Path,
    environment: dict[str, str],
    streams: list[str],
    before: Callable[[], None] | None,
) -> None:
    for number, name in enumerate(streams, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = line
    try:
        if before is not None:
            before()
        if line[0].endswith(".py"):
            runpy.run_path(line[0], run_name="__main__")
        else:
            runpy.run_module(line[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out, and JAX has some
