"""Which way of stepping ends a group of trials first, by trying."""

import time
from collections.abc import Callable, Sequence

import jax

from lora_jax.compiled.jaxpr_memory import working_bytes
from lora_jax.training.step import Batch, TrainState
from lora_jax.training.trial_program import Execution, Program

GAIN = {"cpu": 0.02}
"""The part of the time of `each` that stepping at once may be hoped to save: on CPUs, where it
mostly saves nothing, no more than a try may cost; elsewhere all but one trial's."""


CLEAR = 0.97
"""Of another's time: less of a gain is noise, and stepping at once takes more memory."""


def fastest(
    make: Callable[[Execution], Program],
    start: Callable[[], Sequence[TrainState]],
    batches: Sequence[Batch],
    steps: int,
    shapes: int,
    room: int | None = None,
) -> tuple[Program, dict[str, float]]:
    """The program that ends first, by a few timed steps; and the seconds of a step of each tried.

    On a CPU, stepping at once is faster only for few tokens a trial, so nothing is assumed. What
    could not save the time of its own compilation is not tried, and what does not fit into memory
    is not taken.

    Args:
      make: the program of an execution (`make_program`).
      start: makes the states before the first step; called for each that is tried.
      batches: one of each trial, of the shape that is most frequent.
      steps: still to go.
      shapes: how many shapes of batches there are, each of which is compiled.
      room: bytes of memory; a step of all at once that takes more, by an estimate, is not tried: on
        a CPU, the process would be killed for it.
    """
    possible = GAIN.get(jax.default_backend(), 1 - 1 / len(batches))
    best, compilation = make("each"), 0.0
    seconds: dict[str, float] = {}
    for execution in ("each", "vmap", "map"):
        if seconds:
            saved = min(seconds.values()) * possible * steps
            if saved < compilation * shapes:
                break
            if seconds.get("vmap", 0.0) > CLEAR * seconds["each"]:
                break  # the machine is full with one trial: mapping saves nothing either
        program = best if execution == "each" else make(execution)
        try:
            first, rest = _timed(program, start, batches, None if execution == "each" else room)
        except (jax.errors.JaxRuntimeError, MemoryError):
            if execution == "each":
                raise
            continue
        if not seconds or rest < CLEAR * min(seconds.values()):
            best = program
        compilation = compilation or max(first - rest, 0.0)
        seconds[execution] = rest
    return best, seconds


def _timed(
    program: Program,
    start: Callable[[], Sequence[TrainState]],
    batches: Sequence[Batch],
    room: int | None,
) -> tuple[float, float]:
    """Seconds of the first step, compilation included, and of the fastest of two more.

    Raises:
      MemoryError: a step takes more than `room`.
    """
    population = program.start(start())
    if room is not None:
        traced = program.jitted.trace(*program.arguments(population, batches))
        if working_bytes(traced.jaxpr.jaxpr) > room:
            raise MemoryError
    times = []
    for _ in range(3):
        began = time.perf_counter()
        population, values = program.step(population, batches)
        jax.block_until_ready((population, values))
        times.append(time.perf_counter() - began)
    return times[0], min(times[1:])
