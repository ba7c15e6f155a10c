"""The process of one contender.

    python -m experiments.benchmarks.contenders.process '{"side": "ours", "case": {...}}'

It makes the contender, works once, and prints a line of JSON with the facts. For each line with a
number, it then works so often, and answers with the seconds of each time.
"""

import ctypes
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.benchmarks.cases import Case, Contender
from experiments.benchmarks.contenders.made import Made


def make(contender: Contender) -> Made:
    """Make a contender.

    Raises:
      ValueError: its side has no such work.
    """
    name = f"{contender.side}_{contender.case.work}"
    if not (Path(__file__).parent / f"{name}.py").exists():
        raise ValueError(f"{contender.side} has no {contender.case.work}")
    return importlib.import_module(f"experiments.benchmarks.contenders.{name}").make(contender.case)


def serve(contender: Contender) -> None:
    made = make(contender)
    print(json.dumps(facts(made)), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            made.work()
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds), flush=True)


def facts(made: Made) -> dict[str, float]:
    """All facts of a contender, which works once."""
    return {**growth(made.work), **made.facts, **device_memory()}


def growth(work: Callable[[], Any]) -> dict[str, float]:
    """Work once, and give the bytes by which this process grew at most: Linux's own numbers."""
    status, peak = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def kilobytes(name: str) -> int:
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    if not peak.exists():
        work()
        return {}
    ctypes.CDLL(None).malloc_trim(0)
    peak.write_text("5", encoding="ascii")  # the peak is now what is in use
    before = kilobytes("VmRSS")
    work()
    return {"growth_bytes": 1024 * max(0, kilobytes("VmHWM") - before)}


def device_memory() -> dict[str, float]:
    """The most bytes that were in use on JAX's device, where it counts them."""
    jax: Any = sys.modules.get("jax")
    found = jax.devices()[0].memory_stats() if jax is not None else None
    return {"device_peak_bytes": found["peak_bytes_in_use"]} if found else {}


if __name__ == "__main__":
    said = json.loads(sys.argv[1])
    serve(Contender(said["side"], Case(**said["case"])))
