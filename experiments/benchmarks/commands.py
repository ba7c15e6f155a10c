"""Run and time commands, each as a process of its own."""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_TICK = 0.005


def seconds_of(program: Sequence[str], *arguments: str) -> float:
    """The seconds of a whole command, which compiles all its programs.

    Args:
      program: the first words of its command line, as of `command_names.command_line`.

    Raises:
      ValueError: it fails; the message is its own.
    """
    line = [*program, *arguments]
    began = time.perf_counter()
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise ValueError(f"{' '.join(line[1:])}: {(done.stderr or done.stdout).strip()}")
    return seconds


def seconds_until(
    path: Path, program: Sequence[str], *arguments: str, settings: Mapping[str, str] | None = None
) -> float:
    """The seconds from the start of a command until it has written a line to a file.

    The command goes on to its end.

    Args:
      program: as of `seconds_of`.
      settings: environment variables, beside those of this process.

    Raises:
      ValueError: it fails, or never writes the line.
    """
    line, environment = (
        [*program, *arguments],
        {**os.environ, **(settings or {})},
    )
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        began = time.perf_counter()
        process = subprocess.Popen(line, stdout=said, stderr=said, env=environment)
        try:
            while not (written := _has_line(path)) and process.poll() is None:
                time.sleep(_TICK)
            seconds = time.perf_counter() - began
            if process.wait() or not (written or _has_line(path)):
                said.seek(0)
                raise ValueError(f"{' '.join(line[1:])}: {said.read().strip()}")
        finally:
            process.kill()
            process.wait()
    return seconds


def _has_line(path: Path) -> bool:
    return path.exists() and b"\n" in path.read_bytes()
