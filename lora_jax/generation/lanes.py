"""Lanes: texts that a bank's adapters continue side by side, and that come and go one by one.

    bank = lj.Bank(step, params)            # step, params = cached_step(decoder)
    lanes = empty(bank, count=8, capacity=512)
    programs = Programs()
    lanes, token = programs.admit(bank, lanes, 3, slot, prompt_ids, Sampling())
    lanes, tokens = programs.advance(bank, lanes)    # one token of each active lane
    lanes = release(lanes, 3)

`advance` is two programs, and `admit` one for each of `buckets`. They change the lanes' arrays in
place: lanes that were given to them cannot be used any more.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from lora_jax.generation.choose_token import GREEDY, Sampling, Settings, choose
from lora_jax.methods.checks import require_count
from lora_jax.models.parts.kv_cache import (
    CachedStep,
    KVCache,
    LaneCache,
    NextStep,
    begun,
    empty_lanes,
    written,
)
from lora_jax.models.parts.separate_layers import separate, stacked
from lora_jax.serving.bank import Bank

LEAST = 16
"""The fewest tokens that a prompt is padded to."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lanes:
    """R lanes, each with one text or none.

    `cache` has a row for each lane. The other arrays are (R,): `slots` of the adapters in the bank,
    the last of the `tokens` of each text, which is not in the cache yet, how many tokens were
    `written` after its prompt, whether a lane is `active`, and how tokens are chosen.
    """

    cache: LaneCache
    slots: Array
    tokens: Array
    written: Array
    active: Array
    settings: Settings

    @property
    def count(self) -> int:
        """R, the number of lanes."""
        return self.slots.shape[0]

    @property
    def capacity(self) -> int:
        """How many tokens a lane holds: a prompt's, and all that follow but the last."""
        return self.cache.capacity


def empty(bank: Bank, count: int, capacity: int) -> Lanes:
    """Lanes without a text.

    Args:
        bank: its `forward` is a `CachedStep`.
        count: how many texts there are at most at a time.
        capacity: how many tokens each lane holds.

    Raises:
        ValueError: for another bank, and for more tokens than the model takes.
    """
    require_count("count", count)
    require_count("capacity", capacity)
    _, one = shapes(bank, capacity)
    layers, _, _, groups, width = one.keys.shape
    cache = empty_lanes((layers, count, groups, capacity, width), one.keys.dtype)
    settings = jax.tree.map(lambda x: jnp.tile(x, count), Settings.of(GREEDY))
    # No array is there twice, as each is donated.
    slots, tokens, written = (jnp.zeros(count, jnp.int32) for _ in range(3))
    lanes = Lanes(cache, slots, tokens, written, jnp.zeros(count, bool), settings)
    return jax.device_put(lanes, _placement(bank))


def _placement(bank: Bank) -> Any:
    """Where lanes are: on the bank's device, or on each of its mesh.

    They are put there, as what a program gives is: else it would be compiled again for its outputs.
    """
    sharding = jax.tree.leaves(bank.base)[0].sharding
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    (device, *_) = sharding.device_set
    return device


def shapes(bank: Bank, capacity: int) -> tuple[int, KVCache]:
    """The size of a model's vocabulary, and the shapes of a cache for one text."""
    if not isinstance(bank.forward, CachedStep):
        raise ValueError(
            "the bank's forward must compute step by step: a CachedStep, as `cached_step` gives"
        )
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    slot = jax.ShapeDtypeStruct((), jnp.int32)
    logits, cache = jax.eval_shape(
        lambda bank, slot, ids: stacked(bank).one(slot)(ids, None, None, capacity=capacity),
        bank,
        slot,
        ids,
    )
    return logits.shape[-1], cache


def buckets(capacity: int) -> tuple[int, ...]:
    """The lengths that prompts are padded to: powers of two, and the capacity."""
    least = LEAST.bit_length() - 1
    powers = (2**power for power in range(least, capacity.bit_length()))
    return (*(each for each in powers if each < capacity), capacity)


class Programs:
    """What is compiled to continue texts. JAX holds it for as long as there is this object."""

    def __init__(self) -> None:
        # Of functions that nobody else has: JAX forgets what it made of a function with it.
        self._admit = jax.jit(lambda *given: _admit(*given), donate_argnums=1)
        self._next = jax.jit(lambda *given: _next(*given))

    def admit(
        self,
        bank: Bank,
        lanes: Lanes,
        lane: int,
        slot: int,
        prompt: Sequence[int],
        sampling: Sampling,
    ) -> tuple[Lanes, Array]:
        """Begin a text in a lane, in the place of what was there.

        Args:
            lane: from 0.
            slot: the adapter's in the bank.
            prompt: 1 to `capacity` tokens.

        Returns:
            The lanes, and the text's first token, () int32 (`choose_token.FAILED` where logits are
            not numbers).

        Raises:
            ValueError: the prompt is empty or does not fit.
        """
        length = len(prompt)
        require_prompt(length, lanes.capacity)
        width = next(each for each in buckets(lanes.capacity) if each >= length)
        ids = np.zeros(width, np.int32)
        ids[width - length :] = prompt
        numbers = (np.int32(lane), np.int32(slot), np.int32(width - length))
        return self._admit(bank, lanes, *numbers, ids, Settings.of(sampling))

    def advance(self, bank: Bank, lanes: Lanes) -> tuple[Lanes, Array]:
        """Continue each active lane by one token, with its own adapter.

        Returns:
            The lanes, and tokens (R,) int32: of no meaning in lanes that are not active, and
            `choose_token.FAILED` where logits are not numbers or the lane is full.
        """
        # Of one program that reads the cache and writes into it, XLA makes one that copies it all.
        tokens, keys, values = self._next(bank, lanes)
        return _written(lanes, tokens, keys, values), tokens

    def compile(self, bank: Bank, lanes: Lanes) -> None:
        """Compile all of them. Arrays of the bank and of the lanes may be shapes."""
        number = np.int32(0)
        for width in buckets(lanes.capacity):
            given = number, number, number, np.zeros(width, np.int32), Settings.of(GREEDY)
            self._admit.lower(bank, lanes, *given).compile()
        self._next.lower(bank, lanes).compile()


def require_prompt(length: int, capacity: int) -> None:
    if not 1 <= length <= capacity:
        raise ValueError(f"a prompt must have 1 to {capacity} tokens, the capacity; got {length}")


def _admit(
    bank: Bank,
    lanes: Lanes,
    lane: Array,
    slot: Array,
    padding: Array,
    ids: Array,
    settings: Settings,
) -> tuple[Lanes, Array]:
    there = jnp.arange(ids.shape[0], dtype=jnp.int32) >= padding
    logits, cache = stacked(bank).one(slot)(ids[None], there[None], None)
    alone = jax.tree.map(lambda x: x[None], settings)
    first = choose(logits, alone, jnp.zeros(1, jnp.int32), jnp.ones(1, bool))[0]
    return Lanes(
        cache=begun(lanes.cache, lane, cache.keys, cache.values, padding),
        slots=lanes.slots.at[lane].set(slot),
        tokens=lanes.tokens.at[lane].set(first),
        written=lanes.written.at[lane].set(1),
        active=lanes.active.at[lane].set(True),
        settings=jax.tree.map(lambda all, x: all.at[lane].set(x), lanes.settings, settings),
    ), first


def _next(bank: Bank, lanes: Lanes) -> tuple[Array, Array, Array]:
    """The next tokens, and keys and values (layers, R, groups, head_dim) of the last ones."""
    bank = stacked(dataclasses.replace(bank, forward=NextStep(bank.forward.graph)))

    def one(slot: Array, *inputs: Array) -> tuple[Array, Array, Array]:
        return bank.one(slot)(*inputs)

    cache = stacked(lanes.cache)
    inputs = lanes.tokens, cache.keys, cache.values, cache.filled
    rows = jax.vmap(one, in_axes=(0, 0, 1, 1, 0), out_axes=(0, 1, 1))
    logits, keys, values = rows(lanes.slots, *inputs)
    return choose(logits, lanes.settings, lanes.written, lanes.active), keys, values


SHARED = Programs()
"""Those of all schedulers that have none of their own."""


@functools.partial(jax.jit, donate_argnames="lanes")
def _written(lanes: Lanes, tokens: Array, keys: Array, values: Array) -> Lanes:
    cache = written(lanes.cache, keys, values)
    filled = jnp.where(lanes.active, cache.filled, lanes.cache.filled)
    return dataclasses.replace(
        lanes,
        cache=dataclasses.replace(cache, filled=filled),
        tokens=jnp.maximum(tokens, 0),
        written=lanes.written + lanes.active.astype(jnp.int32),
    )


def release(lanes: Lanes, lane: int) -> Lanes:
    """The lanes without the text of one of them."""
    return dataclasses.replace(lanes, active=_without(lanes.active, np.int32(lane)))


@jax.jit
def _without(active: Array, lane: Array) -> Array:
    return active.at[lane].set(False)


STACKED = ("trainable", "constants")
"""The parts of a bank whose arrays have the stacked axes of their weights in front."""


def separate_bank(bank: Bank, base: Any = None) -> Bank:
    """The bank with `Layers` in place of arrays of stacked layers, whose memory they share.

    `lora_jax.models.parts.separate_layers.stacked` undoes it, inside a compiled program. Nothing
    else may be done with the bank.

    Args:
        base: `base.base` of what this made of another bank with the same base, to take it again.
    """
    if base is None:
        base = separate(bank.base.base)
    if base is bank.base.base:  # not on one CPU, or in a loop over its layers
        return bank
    held = bank.held
    assert held is not None
    stacks = {
        f"{number}/{key.path}": (key, x)
        for number, (key, x) in enumerate(held.arrays.items())
        if key.part in STACKED
    }
    apart = separate({name: x for name, (_, x) in stacks.items()}, shapes=True)
    arrays = held.arrays | {key: apart[name] for name, (key, _) in stacks.items()}
    return dataclasses.replace(
        bank,
        base=dataclasses.replace(bank.base, base=base),
        held=dataclasses.replace(held, arrays=arrays),
    )
