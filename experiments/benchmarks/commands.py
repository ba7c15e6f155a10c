"""Run and time commands of this project, each as a process of its own."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

_TICK = 0.005


def seconds_of(module: str, *arguments: str) -> float:
    """The seconds of a whole command, which compiles all its programs.

    Raises:
      ValueError: it fails; the message is its own.
    """
    line = [sys.executable, "-m", module, *arguments]
    began = time.perf_counter()
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise ValueError(f"{' '.join(line[1:])}: {(done.stderr or done.stdout).strip()}")
    return seconds


def seconds_until(
    path: Path, module: str, *arguments: str, settings: Mapping[str, str] | None = None
) -> float:
    """The seconds from the start of a command until it has written a line to a file.

    The command goes on to its end.

    Args:
      settings: environment variables, beside those of this process.

    Raises:
      ValueError: it fails, or never writes the line.
    """
    line, environment = (
        [sys.executable, "-m", module, *arguments],
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
