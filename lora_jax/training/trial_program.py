"""Many trials as one program over one copy of the frozen base.

Trials that differ in numbers alone (learning rates, alphas, ranks, dropout, seeds) share one step.
Their trainables, constants and optimisers' numbers are its arguments, and are stacked if the trials
step at once. The base is neither stacked nor copied, except leaves that differ between trials (a
frozen head that each draws from its seed). A run is a program of one trial (`alone`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lora_jax.training.step import Batch, Step, TrainState
from lora_jax.transform.placement import Frozen

Execution = Literal["each", "map", "vmap"]
EXECUTIONS: tuple[Execution, ...] = ("each", "map", "vmap")
Hyper = Mapping[str, Array]
TracedStep = Callable[[Hyper, TrainState, Frozen, Batch], tuple[TrainState, dict[str, Array]]]
"""A step to trace, which makes its optimiser from a trial's numbers (see `step.make_step`)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """N trials that step together; how their states are held depends on the execution.

    `start` takes N states. `step` takes the states that `start` or `step` returned, which it
    donates, and N batches of equal shapes, None for a trial that has ended; it waits for nothing.
    `read` waits, and makes of what `step` returned beside the states the metrics of each trial;
    those of a trial that has ended mean nothing. `pick` gives the state of one trial, `stacked`
    those of all with a leading axis. `jitted` is the compiled function; `step` calls it with
    `arguments`, for all trials at once or for each in turn (here for the first).
    """

    execution: Execution
    start: Callable[[Sequence[TrainState]], Any]
    step: Callable[[Any, Sequence[Batch | None]], tuple[Any, Any]]
    read: Callable[[Any], list[dict[str, float]]]
    pick: Callable[[Any, int], TrainState]
    stacked: Callable[[Any], TrainState]
    jitted: Any
    arguments: Callable[[Any, Sequence[Batch | None]], tuple[Any, ...]]
    at_once: int | None = None
    """How many trials `jitted` takes at once; None if it takes each by itself."""


def alone(step: Step, frozen: Frozen) -> Program:
    """The program of one trial, `each` by itself: its optimiser's numbers are constants of `step`.

    The states are lists of the one state, whose arrays get no further axis.
    """
    return _in_turn(step, lambda number, state, batch: (state, frozen, batch))


def make_program(
    execution: Execution, step: TracedStep, frozen: Sequence[Frozen], hyper: Sequence[Hyper]
) -> Program:
    """The trials one after the other (`each`), or in one call, mapped or vectorised.

    Args:
      frozen: one for each trial, of equal structure, with the leaves of one base (see `masking`).
      hyper: the numbers from which `step` makes the optimiser of each trial.
    """
    if execution == "each":
        return _each(step, frozen, hyper)
    return _at_once(execution, step, frozen, hyper)


def _each(step: TracedStep, frozen: Sequence[Frozen], hyper: Sequence[Hyper]) -> Program:
    jitted = jax.jit(step, donate_argnums=1)
    return _in_turn(
        jitted, lambda number, state, batch: (hyper[number], state, frozen[number], batch)
    )


def _in_turn(jitted: Any, given: Callable[[int, TrainState, Any], tuple[Any, ...]]) -> Program:
    """One call for each trial, with the arguments that `given` makes of its state and batch."""

    def arguments(states: list[TrainState], batches: Sequence[Batch | None]) -> tuple[Any, ...]:
        return given(0, states[0], batches[0])

    def advance(states: list[TrainState], batches: Sequence[Batch | None]) -> Any:
        states, values = list(states), [{} for _ in states]
        for number, batch in enumerate(batches):
            if batch is not None:
                states[number], values[number] = jitted(*given(number, states[number], batch))
        return states, values

    def read(values: list[dict[str, Array]]) -> list[dict[str, float]]:
        return [{name: float(value) for name, value in each.items()} for each in values]

    def pick(states: list[TrainState], number: int) -> TrainState:
        return states[number]

    return Program("each", list, advance, read, pick, stack, jitted, arguments)


def _at_once(
    execution: Execution, step: TracedStep, frozen: Sequence[Frozen], hyper: Sequence[Hyper]
) -> Program:
    spec, treedef = frozen[0].spec, jax.tree.structure(frozen[0].base)
    bases = [jax.tree.leaves(each.base) for each in frozen]
    common = [all(leaf is same[0] for leaf in same) for same in zip(*bases, strict=True)]
    base = [leaf for leaf, is_common in zip(bases[0], common, strict=True) if is_common]
    others = [[x for x, is_common in zip(b, common, strict=True) if not is_common] for b in bases]
    own = stack([(f.constants, f.shared, other) for f, other in zip(frozen, others, strict=True)])
    numbers = stack(hyper)

    def all_of_them(states: TrainState, base: Any, own: Any, numbers: Any, batches: Any) -> Any:
        def one(arguments: Any) -> Any:
            state, (constants, shared, other), numbers, batch = arguments
            sources = iter(base), iter(other)
            leaves = [next(sources[0] if is_common else sources[1]) for is_common in common]
            whole = Frozen(treedef.unflatten(leaves), constants, spec, shared)
            return step(numbers, state, whole, batch)

        over = lax.map if execution == "map" else lambda f, xs: jax.vmap(f)(xs)
        return over(one, (states, own, numbers, batches))

    jitted = jax.jit(all_of_them, donate_argnums=0)

    def arguments(states: TrainState, batches: Sequence[Batch | None]) -> tuple[Any, ...]:
        some = next(batch for batch in batches if batch is not None)
        given = [some if batch is None else batch for batch in batches]
        return states, base, own, numbers, stack(given)

    def advance(states: TrainState, batches: Sequence[Batch | None]) -> Any:
        return jitted(*arguments(states, batches))

    def read(values: dict[str, Array]) -> list[dict[str, float]]:
        arrays = {name: np.asarray(value) for name, value in values.items()}
        return [{n: float(array[number]) for n, array in arrays.items()} for number in range(count)]

    def stacked(states: TrainState) -> TrainState:
        return states

    count = len(frozen)
    return Program(execution, stack, advance, read, unstack, stacked, jitted, arguments, count)


def stack(trees: Sequence[Any]) -> Any:
    """Stack pytrees of one structure along a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def unstack(tree: Any, number: int) -> Any:
    """The pytree of this number among those that were stacked."""
    return jax.tree.map(lambda leaf: leaf[number], tree)
