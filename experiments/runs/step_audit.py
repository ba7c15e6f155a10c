"""Audit a run's own step (`lora_jax.compiled.audit`) before it trains, for all batch shapes."""

import dataclasses
import platform
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.setup import processes
from experiments.setup.experiment import Experiment
from lora_jax.compiled import audit
from lora_jax.compiled.compiler_faults import CURE
from lora_jax.sharding import memory
from lora_jax.sharding.mesh import said_by_all
from lora_jax.training.step import TrainState
from lora_jax.training.trial_program import Program
from lora_jax.transform.summary import summary

LARGEST = 1_000_000_000
"""From this many parameters on, a model's step is not audited, as it takes NumPy too long."""
LONG = 5.0
"""An audit of more seconds than this is reported in a line."""
ADVICE = (
    f"set XLA_FLAGS={CURE}, take another release of jaxlib, or train nevertheless with --noaudit"
)


def of_program(
    experiments: Sequence[Experiment], program: Program, states: Sequence[TrainState]
) -> audit.Audit | None:
    """Audit a program's step: of its first trial, or of all trials if they step at once.

    It takes a batch of each padded length that any trial has. If the step cannot be audited, this
    prints why and returns None.

    Args:
      experiments: the trials, with the batches that they take (`group.with_batches_for`).
      states: the trials' states before the first step; they are not changed.

    Raises:
      ValueError: the compiled step is wrong; one line names the parameter.
    """
    first = experiments[0]
    if (total := summary(first.trainable, first.frozen).total) >= LARGEST:
        _say(f"the compiled step is not audited: the model has {total:,} parameters")
        return None

    def arguments(trial: int, step: int) -> tuple[Any, ...]:
        if program.at_once is None:  # the first trial's state, with the batch of any trial
            audited, fed = states[:1], experiments[trial : trial + 1]
        else:
            audited, fed = states, experiments
        population = program.start([_beside(state) for state in audited])
        return program.arguments(population, [next(each.batches(step)) for each in fed])

    cases = (
        (f"batches of {first.batch_size} x {length}", lambda at=at: arguments(*at))
        for length, at in _shapes(experiments)
    )
    found = audit.audit(program.jitted, cases, program.at_once, room=_room(), advice=ADVICE)
    for name, why in found.left_out.items():
        _say(f"the compiled step is not audited for {name}: {why}")
    if (spent := found.seconds - found.compiling) > LONG:
        _say(f"the compiled step was audited in {spent:.0f} s (--noaudit trains without)")
    return found


def _room() -> int | None:
    """Bytes of memory for this process: an equal share for each process on this machine."""
    free, machines = memory.host_memory(), said_by_all(platform.node())
    return None if free is None else free // machines.count(platform.node())


def _shapes(experiments: Sequence[Experiment]) -> list[tuple[int, tuple[int, int]]]:
    """The padded lengths of first epochs, in order, each with a trial and a step that has it."""
    found: dict[int, tuple[int, int]] = {}
    for trial, each in enumerate(experiments):
        for step, batch in enumerate(each.first_epoch()[: each.loop.steps]):
            found.setdefault(batch.padded_length, (trial, step))
    return sorted(found.items())


def _beside(state: TrainState) -> TrainState:
    """A copy of a state, with perturbed parameters so that all gradients are non-zero."""
    rest = jax.tree.map(jnp.copy, dataclasses.replace(state, trainable=None))
    return dataclasses.replace(rest, trainable=audit.perturbed(state.trainable))


def _say(line: str) -> None:
    if processes.writes():
        print(line)
