"""A contender that is ready to work, and facts about programs and processes."""

import contextlib
import ctypes
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from benchmarks import models
from benchmarks.cases import Case
from lora_jax.compiled import jaxpr_costs

Facts = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Made:
    """A contender that is ready to work."""

    work: Callable[[], Any]
    """Does the work once, and returns when it is done."""
    facts: Facts = dataclasses.field(default_factory=dict)
    """Numbers that need no clock, by name."""


def compiled(jitted: Any, *arguments: Any) -> tuple[Any, Facts]:
    """Compile a jitted function for these arguments.

    Returns:
      The program, and its facts: `flops` and `bytes_accessed` of a call, as XLA counts them (the
      body of a loop once); `temporary_bytes`, and `peak_bytes` with arguments and results;
      `compile_seconds`; `product_flops` and `held_bytes`, counted in the jaxpr (the body of a loop
      as often as it runs).
    """
    began = time.perf_counter()
    traced = jitted.trace(*arguments)
    program = traced.lower().compile()
    seconds = time.perf_counter() - began
    jaxpr = traced.jaxpr.jaxpr
    cost, memory = program.cost_analysis() or {}, program.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return program, {
        "flops": float(cost.get("flops", 0)),
        "bytes_accessed": float(cost.get("bytes accessed", 0)),
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes + results,
        "compile_seconds": seconds,
        "product_flops": jaxpr_costs.product_flops(jaxpr),
        "held_bytes": jaxpr_costs.peak_bytes(jaxpr, compiled=True),
    }


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """The seconds of everything that XLA compiles in a `with` block."""
    counted: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counted
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def stepping(step: Any, state: Any, frozen: Any, batch: Any) -> Made:
    """A contender that takes steps, `(state, frozen, batch) -> (state, metrics)`.

    Its work returns the loss.
    """
    program, facts = compiled(step, state, frozen, batch)

    def work() -> float:
        nonlocal state
        state, metrics = program(state, frozen, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return Made(work, facts)


def compilation(case: Case, step: Any, *arguments: Any) -> Made:
    """A contender that traces and compiles a training step again and again."""
    given = *arguments, models.batch(case)

    def work() -> None:
        jax.clear_caches()
        step.lower(*given).compile()

    return Made(work, compiled(step, *given)[1])


def facts(made: Made) -> dict[str, float]:
    """All facts of a contender, which works once."""
    return {**growth(made.work), **made.facts}


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
