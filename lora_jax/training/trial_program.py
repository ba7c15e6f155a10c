"""Many trials as one program over one copy of the frozen base.

Trials that differ in numbers alone (learning rates, alphas, ranks, dropout, seeds) share one step.
Their trainables, constants and optimisers' numbers are its arguments, and are stacked if the trials
step at once. The base is neither stacked nor copied, except leaves that differ between trials (a
frozen head that each draws from its seed). A run is a program of one trial (`alone`).
"""

import dataclasses
import operator
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


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Program:
    """N trials that step together. How it holds their states depends on the execution."""

    execution: Execution
    start: Callable[[Sequence[TrainState]], Any]
    """Makes the program's states from the states of N trials."""
    step: Callable[[Any, Sequence[Batch | None]], tuple[Any, Any]]
    """Takes states and N batches of equal shapes; returns the next states, and values for `read`.

    The batch of a trial that has ended is None. The states are donated. It does not wait for the
    device.
    """
    read: Callable[[Any], list[dict[str, float]]]
    """Waits for the values that `step` returned, and gives the metrics of each trial.

    The metrics of a trial that has ended have no meaning.
    """
    pick: Callable[[Any, int], TrainState]
    """Gives the state of one trial."""
    stacked: Callable[[Any], TrainState]
    """Gives the states of all trials, stacked along a leading axis."""
    jitted: Any
    """The compiled function. `step` calls it once for all trials, or once for each."""
    arguments: Callable[[Any, Sequence[Batch | None]], tuple[Any, ...]]
    """The arguments of `jitted`; those of the first trial if it is called once for each."""
    at_once: int | None = None
    """How many trials `jitted` takes at once; None if it takes each by itself."""


def alone(step: Step, frozen: Frozen) -> Program:
    """The program of one trial: its optimiser's numbers are constants of `step`.

    It holds a list of one state. The arrays get no leading axis.
    """
    return _in_turn(step, lambda number, state, batch: (state, frozen, batch))


def make_program(
    execution: Execution, step: TracedStep, frozen: Sequence[Frozen], hyper: Sequence[Hyper]
) -> Program:
    """The program of several trials: a call for each (`each`), or one call (`map`, `vmap`).

    Args:
      frozen: one for each trial, of equal structure, with the leaves of one base (see `masking`).
      hyper: the numbers from which `step` makes the optimiser of each trial.
    """
    if execution == "each":
        jitted = jax.jit(step, donate_argnums=1)
        return _in_turn(jitted, lambda n, state, batch: (hyper[n], state, frozen[n], batch))
    return _at_once(execution, step, frozen, hyper)


def _in_turn(jitted: Any, given: Callable[[int, TrainState, Any], tuple[Any, ...]]) -> Program:
    """A program that calls `jitted` for each trial; `given` makes the arguments of each call."""

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

    return Program(
        execution="each",
        start=list,
        step=advance,
        read=read,
        pick=operator.getitem,
        stacked=stack,
        jitted=jitted,
        arguments=arguments,
    )


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
    return Program(
        execution=execution,
        start=stack,
        step=advance,
        read=read,
        pick=unstack,
        stacked=stacked,
        jitted=jitted,
        arguments=arguments,
        at_once=count,
    )


def stack(trees: Sequence[Any]) -> Any:
    """Stack pytrees of one structure along a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def unstack(tree: Any, number: int) -> Any:
    """The pytree of this number among those that were stacked."""
    return jax.tree.map(lambda leaf: leaf[number], tree)
