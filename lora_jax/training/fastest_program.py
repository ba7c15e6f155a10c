"""Find, by timing each, which way of stepping ends a group of trials first."""

import time
from collections.abc import Callable, Sequence

import jax

from lora_jax.compiled.jaxpr_costs import working_bytes
from lora_jax.training.step import Batch, TrainState
from lora_jax.training.trial_program import Execution, Program

GAIN = {"cpu": 0.02}
"""The largest share of `each`'s time that stepping at once could save. On CPUs, where it mostly
saves nothing, it is only what a try may cost; elsewhere it is all but one trial's share."""
CLEAR = 0.97
"""A program must take less than this share of another's time to count as faster: a smaller gain is
noise, and stepping at once takes more memory."""


def fastest(
    make: Callable[[Execution], Program],
    start: Callable[[], Sequence[TrainState]],
    batches: Sequence[Batch],
    steps: int,
    shapes: int,
    room: int | None = None,
) -> tuple[Program, dict[str, float]]:
    """The program that ends first, by a few timed steps, and the seconds of a step of each tried.

    On a CPU, stepping at once is faster only for few tokens a trial, so nothing is assumed. A
    program that could not save the time of its own compilation is not tried. One that does not fit
    into memory is not chosen.

    Args:
      make: makes the program of an execution (`make_program`).
      start: makes the states before the first step; called for each program that is tried.
      batches: one batch for each trial, of the most frequent shape.
      steps: how many steps are still to run.
      shapes: how many shapes of batches there are; each is compiled.
      room: bytes of available memory. If a step of all at once takes more, by an estimate, it is
        not tried: on a CPU, the process would be killed for it.
    """
    possible = GAIN.get(jax.default_backend(), 1 - 1 / len(batches))
    best, compilation = make("each"), 0.0
    seconds: dict[str, float] = {}
    for execution in ("each", "vmap", "map"):
        if seconds:
            saved = min(seconds.values()) * possible * steps
            # If stepping at once is no faster, one trial uses the whole machine, and mapping saves
            # nothing either.
            slow = seconds.get("vmap", 0.0) > CLEAR * seconds["each"]
            if slow or saved < compilation * shapes:
                break
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
