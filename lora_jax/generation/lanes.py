"""Lanes: texts that a bank's adapters continue side by side, and that come and go one by one.

    bank = lj.Bank(step, params)            # step, params = cached_step(decoder)
    lanes = empty(bank, count=8, capacity=512)
    lanes, token = admit(bank, lanes, 3, slot, prompt_ids, Sampling())
    lanes, tokens = advance(bank, lanes)    # one token of each active lane
    lanes = release(lanes, 3)

`advance` is one program, and `admit` one for each of `buckets`. Both change the lanes' arrays in
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

from lora_jax.generation.choose_token import GREEDY, Sampling, Settings, choose
from lora_jax.methods.checks import require_count
from lora_jax.models.parts.kv_cache import CachedStep, KVCache
from lora_jax.models.parts.separate_layers import stacked
from lora_jax.serving.bank import Bank

LEAST = 16
"""The fewest tokens that a prompt is padded to."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lanes:
    """R lanes, each with one text or none.

    `cache` has a row for each lane, in which tokens begin at place 0, without padding. Its `filled`
    is (R,), as each lane has its own. The others are (R,), too: `slots` of the adapters in the
    bank, the last of the `tokens` of each text, which is not in the cache yet, how many tokens were
    `written` after its prompt, whether a lane is `active`, and how tokens are chosen.
    """

    cache: KVCache
    slots: Array
    tokens: Array
    written: Array
    active: Array
    settings: Settings

    @property
    def count(self) -> int:
        """R, the number of lanes."""
        return self.cache.positions.shape[0]

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
    wide = lambda x, axis: jnp.zeros((*x.shape[:axis], count, *x.shape[axis + 1 :]), x.dtype)  # noqa: E731
    zeros = jnp.zeros(count, jnp.int32)
    keys, values = wide(one.keys, 1), wide(one.values, 1)
    cache = KVCache(keys, values, wide(one.positions, 0), wide(one.valid, 0), zeros)
    settings = jax.tree.map(lambda x: jnp.broadcast_to(x, (count,)).copy(), Settings.of(GREEDY))
    idle = jnp.zeros(count, bool)
    # No array is there twice, as each is donated.
    return Lanes(cache, zeros.copy(), zeros.copy(), zeros.copy(), idle, settings)


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


def admit(
    bank: Bank, lanes: Lanes, lane: int, slot: int, prompt: Sequence[int], sampling: Sampling
) -> tuple[Lanes, Array]:
    """Begin a text in a lane, in the place of what was there.

    Args:
        lane: from 0.
        slot: the adapter's in the bank.
        prompt: 1 to `capacity` tokens.

    Returns:
        The lanes, and the text's first token, () int32 (`choose_token.FAILED` where logits are not
        numbers).

    Raises:
        ValueError: the prompt is empty or does not fit.
    """
    length = len(prompt)
    require_prompt(length, lanes.capacity)
    width = next(each for each in buckets(lanes.capacity) if each >= length)
    ids = np.zeros(width, np.int32)
    ids[width - length :] = prompt
    numbers = (np.int32(lane), np.int32(slot), np.int32(length))
    return _admit(bank, lanes, *numbers, ids, Settings.of(sampling))


def require_prompt(length: int, capacity: int) -> None:
    if not 1 <= length <= capacity:
        raise ValueError(f"a prompt must have 1 to {capacity} tokens, the capacity; got {length}")


@functools.partial(jax.jit, donate_argnames="lanes")
def _admit(
    bank: Bank,
    lanes: Lanes,
    lane: Array,
    slot: Array,
    length: Array,
    ids: Array,
    settings: Settings,
) -> tuple[Lanes, Array]:
    width = ids.shape[0]
    mask = jnp.arange(width, dtype=jnp.int32) >= width - length
    step = stacked(bank).one(slot)
    logits, cache = step(ids[None], mask[None], None, capacity=width)
    first = choose(
        logits,
        jax.tree.map(lambda x: x[None], settings),
        jnp.zeros(1, jnp.int32),
        jnp.ones(1, bool),
    )[0]
    places = jnp.arange(lanes.capacity, dtype=jnp.int32)
    there = places < length

    def begun(whole: Array, new: Array) -> Array:
        """Keys or values, with those of the prompt in the lane, from the first place on."""
        new = jnp.roll(new, length - width, axis=2)
        zero = jnp.zeros((), jnp.int32)
        return jax.lax.dynamic_update_slice(whole, new, (zero, lane, zero, zero, zero))

    whole = lanes.cache
    whole = KVCache(
        begun(whole.keys, cache.keys),
        begun(whole.values, cache.values),
        whole.positions.at[lane].set(jnp.where(there, places, 0)),
        whole.valid.at[lane].set(there),
        whole.filled.at[lane].set(length),
    )
    return Lanes(
        cache=whole,
        slots=lanes.slots.at[lane].set(slot),
        tokens=lanes.tokens.at[lane].set(first),
        written=lanes.written.at[lane].set(1),
        active=lanes.active.at[lane].set(True),
        settings=jax.tree.map(lambda all, x: all.at[lane].set(x), lanes.settings, settings),
    ), first


_ROWS: Any = KVCache(keys=1, values=1, positions=0, valid=0, filled=0)  # type: ignore[arg-type]
"""Which axis of each array of a cache is that of the lanes."""


@functools.partial(jax.jit, donate_argnames="lanes")
def advance(bank: Bank, lanes: Lanes) -> tuple[Lanes, Array]:
    """Continue each active lane by one token, with its own adapter.

    Returns:
        The lanes, and tokens (R,) int32: of no meaning in lanes that are not active, and
        `choose_token.FAILED` where logits are not numbers or the lane is full.
    """
    bank = stacked(bank)

    def one(slot: Array, token: Array, cache: KVCache) -> tuple[Array, KVCache]:
        own = KVCache(
            cache.keys[:, None],
            cache.values[:, None],
            cache.positions[None],
            cache.valid[None],
            cache.filled,
        )
        logits, own = bank.one(slot)(token[None, None], None, own)
        alone = KVCache(
            own.keys[:, 0], own.values[:, 0], own.positions[0], own.valid[0], own.filled
        )
        return logits[0], alone

    rows = jax.vmap(one, in_axes=(0, 0, _ROWS), out_axes=(0, _ROWS))
    logits, cache = rows(lanes.slots, lanes.tokens, lanes.cache)
    tokens = choose(logits, lanes.settings, lanes.written, lanes.active)
    filled = jnp.where(lanes.active, cache.filled, lanes.cache.filled)
    return dataclasses.replace(
        lanes,
        cache=dataclasses.replace(cache, filled=filled),
        tokens=jnp.maximum(tokens, 0),
        written=lanes.written + lanes.active.astype(jnp.int32),
    ), tokens


def release(lanes: Lanes, lane: int) -> Lanes:
    """The lanes without the text of one of them."""
    return dataclasses.replace(lanes, active=_without(lanes.active, np.int32(lane)))


@jax.jit
def _without(active: Array, lane: Array) -> Array:
    return active.at[lane].set(False)
