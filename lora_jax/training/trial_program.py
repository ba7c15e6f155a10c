"""Many trials as one program over one copy of the frozen base.

Trials that differ in numbers alone (learning rates, alphas, ranks, dropout, seeds) take the same
step: their trainables, constants and optimisers' numbers are arguments of it, and stacked where
they step at once. The base is neither stacked nor copied, but for leaves that differ between trials
(a frozen head that each draws from its seed).
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from lora_jax.compiled.jaxpr_memory import working_bytes
from lora_jax.training.step import Batch, TrainState
from lora_jax.transform.placement import Frozen, Trainable, group_of
from lora_jax.variant import Base, Factors, Variant

Execution = Literal["each", "map", "vmap"]
EXECUTIONS: tuple[Execution, ...] = ("each", "map", "vmap")
Hyper = Mapping[str, Array]
TracedStep = Callable[[Hyper, TrainState, Frozen, Batch], tuple[TrainState, dict[str, Array]]]
"""A step to trace, which makes its optimiser of a trial's numbers (see `train.make_step`)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """N trials that step together, and hold the states of all in a form of their own.

    `start` takes N states. `step` takes what `start` or `step` returned, which it donates, and N
    batches of equal shapes, None for a trial that has ended; it returns metrics of shape (N,).
    `pick` gives the state of one trial, `stacked` those of all with a leading axis. What is
    compiled is `jitted`, which `step` calls with `arguments`: of all trials, or of each in turn
    (here of the first).
    """

    execution: Execution
    start: Callable[[Sequence[TrainState]], Any]
    step: Callable[[Any, Sequence[Batch | None]], tuple[Any, dict[str, Array]]]
    pick: Callable[[Any, int], TrainState]
    stacked: Callable[[Any], TrainState]
    jitted: Any
    arguments: Callable[[Any, Sequence[Batch | None]], tuple[Any, ...]]
    at_once: int | None = None
    """How many trials `jitted` takes, where it does not take each by itself."""


def make_program(
    execution: Execution, step: TracedStep, frozen: Sequence[Frozen], hyper: Sequence[Hyper]
) -> Program:
    """The trials one after the other (`each`), or in one call, mapped or vectorised.

    Args:
      frozen: of each trial; of equal structure, with the leaves of one base (see `widen`, `share`).
      hyper: what `step` makes the optimiser of each trial from.
    """
    if execution == "each":
        return _each(step, frozen, hyper)
    return _at_once(execution, step, frozen, hyper)


def _each(step: TracedStep, frozen: Sequence[Frozen], hyper: Sequence[Hyper]) -> Program:
    jitted = jax.jit(step, donate_argnums=1)

    def arguments(states: Any, batches: Sequence[Batch | None], number: int = 0) -> Any:
        return hyper[number], states[number], frozen[number], batches[number]

    def advance(states: list[TrainState], batches: Sequence[Batch | None]) -> Any:
        states, values = list(states), []
        for number, batch in enumerate(batches):
            value: dict[str, Any] = {}
            if batch is not None:
                states[number], value = jitted(*arguments(states, batches, number))
            values.append(value)
        names = {name for value in values for name in value}
        return states, {
            n: jnp.stack([v.get(n, jnp.float32(jnp.nan)) for v in values]) for n in names
        }

    def pick(states: list[TrainState], number: int) -> TrainState:
        return states[number]

    return Program("each", list, advance, pick, stack, jitted, arguments)


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

    def stacked(states: TrainState) -> TrainState:
        return states

    count = len(frozen)
    return Program(execution, stack, advance, unstack, stacked, jitted, arguments, count)


def stack(trees: Sequence[Any]) -> Any:
    """Pytrees of one structure as one, with a leading axis for which of them."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def unstack(tree: Any, number: int) -> Any:
    """One of the pytrees that were stacked."""
    return jax.tree.map(lambda leaf: leaf[number], tree)


# -- trials of different ranks in one structure ---------------------------------------------------


def share(frozen: Frozen, first: Frozen) -> Frozen:
    """A trial's `frozen` with the arrays of another's base, wherever both hold the same values."""

    def either(own: Array, other: Array) -> Array:
        alike = own is other or (own.shape == other.shape and bool((own == other).all()))
        return other if alike else own

    return dataclasses.replace(frozen, base=jax.tree.map(either, frozen.base, first.base))


def widen(
    trainable: Trainable, frozen: Frozen, like: tuple[Trainable, Frozen]
) -> tuple[Trainable, Frozen]:
    """A trial's adapters in the structure of a program that holds larger ones.

    Rows beyond a trial's rank are zero and masked.

    Args:
      like: of the program, arrays or shapes.
    """
    shapes, target = like
    constants = {}
    for each in target.spec.adapted:
        path = each.use.path
        variant = group_of(next(p for p in frozen.spec.adapted if p.use.path == path))
        constants[path] = {
            name: _constant(name, frozen.constants[path], shape, getattr(variant, "rank", 0))
            for name, shape in target.constants[path].items()
        }
    shared = jax.tree.map(_pad, frozen.shared, target.shared)
    wide = jax.tree.map(_pad, trainable, shapes)
    return wide, Frozen(frozen.base, constants, target.spec, shared)


def narrow(tree: Any, like: Any) -> Any:
    """What `widen` padded, without the padding: every leaf in the shape of `like`'s."""
    return jax.tree.map(lambda leaf, to: leaf[tuple(map(slice, to.shape))], tree, like)


def same_when_masked(variant: Variant, wide: Variant, shape: tuple[int, int]) -> bool:
    """Whether a variant computes the same in factors of more rows, those beyond its rank masked.

    Tried with random factors of an (in, out) matrix: all that methods make of them, and gradients,
    which are zero beyond the rank. What a variant carries from step to step is not tried: with an
    `update` of its own, no two ranks are the same.
    """
    kind = type(variant)
    if kind.update is not Variant.update or kind.init_state is not Variant.init_state:
        return False
    keys = jax.random.split(jax.random.key(0), 4)
    base = Base(jax.random.normal(keys[0], shape), "io")
    try:
        own, like = variant.init(keys[1], base), wide.init(keys[1], base)
        own = Factors(jax.tree.map(lambda x: jax.random.normal(keys[2], x.shape), own[0]), own[1])
        rank = getattr(variant, "rank", 0)
        more = Factors(
            jax.tree.map(_pad, own.trainable, like.trainable),
            {n: _constant(n, own.constants, x, rank) for n, x in like.constants.items()},
        )
        here, there = (_values(*each, base, keys[3]) for each in ((variant, own), (wide, more)))
        padded = jax.tree.map(_pad, here, there)
        close = jax.tree.map(lambda x, y: jnp.allclose(x, y, rtol=1e-4, atol=1e-4), padded, there)
    except Exception:  # of a user's code, in a structure that it does not know
        return False
    return all(map(bool, jax.tree.leaves(close)))


def _values(variant: Variant, factors: Factors, base: Base, key: Array) -> Any:
    """All that a variant computes, and the gradient of a number made of it."""
    x, y = (jax.random.normal(key, (3, size)) for size in base.shape)

    def total(trainable: dict[str, Array]) -> tuple[Array, Any]:
        mine = Factors(trainable, factors.constants)
        made = {
            "weight": variant.weight(base, mine),
            "dot": variant.dot(x, base, mine),
            "dropped": variant.dot(x, base, mine, dropout_key=key),
            "dot_t": variant.dot_t(y, base, mine),
            "take": variant.take(jnp.arange(3) % base.shape[0], base, mine),
            "penalty": jnp.asarray(variant.penalty({"": mine}), float),
        }
        return sum((jnp.sin(each).sum() for each in made.values()), jnp.zeros(())), made

    rates = jax.tree.map(jnp.asarray, dict(variant.learning_rates({"": factors.constants})))
    return jax.value_and_grad(total, has_aux=True)(factors.trainable), rates


def _constant(name: str, own: Mapping[str, Array], like: Any, rank: int) -> Array:
    if name != "mask" or name in own:
        return _pad(own[name], like)
    return jnp.broadcast_to((jnp.arange(like.shape[-1]) < rank).astype(like.dtype), like.shape)


def _pad(leaf: Array, like: Any) -> Array:
    if leaf.shape == like.shape:
        return leaf
    return jnp.pad(leaf, [(0, to - own) for own, to in zip(leaf.shape, like.shape, strict=True)])


# -- which execution ------------------------------------------------------------------------------

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
