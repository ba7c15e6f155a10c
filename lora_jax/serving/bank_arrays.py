"""The arrays of a bank: made for what its adapters need if memory has room, and written by slot."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.files.arrays import to_host
from lora_jax.partition import flatten, is_array
from lora_jax.serving.entries import Name
from lora_jax.serving.slots import ACTIVE, GAIN, PLAIN_METHOD, Method, Slots
from lora_jax.sharding.memory import available, size, tree_bytes
from lora_jax.transform.placement import AdaptedSpec, Frozen, Placement, settings_of


class Key(NamedTuple):
    """What an array of a bank is: a `Name`, with the number of its method."""

    part: str
    path: str
    method: int
    name: str
    depth: int


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["methods"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """The adapters of a bank. Each array has an axis of slots, after a weight's stacked axes."""

    methods: tuple[Method, ...] = (PLAIN_METHOD,)
    arrays: dict[Key, Array] = dataclasses.field(default_factory=dict)

    def part(self, part: str, path: str = "") -> dict[str, Array]:
        """Arrays of a part and a path, named `method number/name`."""
        return {
            f"{key.method}/{key.name}": x
            for key, x in self.arrays.items()
            if (key.part, key.path) == (part, path)
        }

    @property
    def params(self) -> dict[str, Array]:
        return {key.path: x for key, x in self.arrays.items() if key.part == "params"}


def base_alone(base: Any) -> Frozen:
    """The base of a bank, without any adapter, from a tree of parameters or an adapter on it.

    Raises:
      ValueError: the adapter trains a parameter in full, so that the base's own is not known.
    """
    if isinstance(base, tuple) and len(base) == 2 and isinstance(base[1], Frozen):
        trainable, frozen = base
        if trainable["params"]:
            raise ValueError(
                f"the base is that of an adapter which trains '{next(iter(trainable['params']))}' "
                "in full, and does not keep the base's own: give the parameters, or, of a "
                "quantised base, an adapter that trains no parameter in full"
            )
        stored = [each.bare() for each in frozen.spec.placements if each.storage is not None]
        spec = dataclasses.replace(frozen.spec, placements=tuple(stored))
        return Frozen(dict(frozen.base), {}, spec)
    leaves, treedef = flatten(base)
    arrays = {path: x for path, x in leaves.items() if is_array(x)}
    return Frozen(arrays, {}, AdaptedSpec(treedef, tuple(leaves), settings_of(leaves), ()))


def require_fit(base: Frozen, params: Mapping[str, Any], frozen: Mapping[str, Any]) -> None:
    """Raise a ValueError unless an adapter has a bank's base.

    Args:
      params: what the adapter trains in full, by path.
      frozen: the parameters of the adapter's own base. Those that are the same arrays as the bank's
        are not compared.
    """
    for path, mine in base.base.items():
        own = params.get(path)
        theirs = frozen.get(path) if own is None else own
        if theirs is mine or _are_same(mine, theirs):
            continue
        if _said(mine) != _said(theirs):
            what = "was trained on a base with" if own is None else "trains"
            raise ValueError(
                f"the adapter {what} another '{path}': {_said(theirs)}, and the bank's is "
                f"{_said(mine)}"
            )
        if own is None and not all(map(_are_equal, jax.tree.leaves(mine), jax.tree.leaves(theirs))):
            raise ValueError(f"the adapter was trained on another base: '{path}' has other numbers")
    if other := sorted({*frozen, *params} - base.base.keys()):
        raise ValueError(
            f"the adapter was trained on a base with '{other[0]}', which the bank does not have"
        )


def _are_same(one: Any, other: Any) -> bool:
    """Whether quantised parameters have the same arrays."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return False
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def _are_equal(one: Any, other: Any) -> bool:
    return one is other or np.array_equal(to_host(one), to_host(other))


def _said(value: Any) -> str:
    """The dtypes and shapes of a parameter, as it is stored."""
    shown = [f"{jnp.dtype(x.dtype)}{list(x.shape)}" for x in jax.tree.leaves(value)]
    return f"quantised as {', '.join(shown)}" if isinstance(value, dict) else " ".join(shown)


def with_room(
    base: Frozen,
    held: Held,
    found: Mapping[Name, np.ndarray],
    placements: Sequence[Placement],
    slots: int,
    way: str,
    new: Callable[[Frozen, Name, np.ndarray, int], Any],
) -> tuple[Frozen, Held]:
    """The same with arrays for all that an adapter has, and placements of its weights.

    Args:
      new: what makes an array that the bank has not: `new_array`, or `new_shape`.
    """
    methods = methods_with(held, found)
    arrays = dict(held.arrays)
    for name, x in found.items():
        if (key := key_of(name, methods)) not in arrays:
            arrays[key] = new(base, name, x, slots)
        elif x.shape != (there := _without(arrays[key].shape, key.depth)):
            what = " of ".join(filter(None, (f"'{name.name}'", name.path)))
            raise ValueError(
                f"{what} is {list(x.shape)}, and {list(there)} in other adapters of its method: "
                "they need a bank of their own"
            )
    variants = tuple(method.variant for method in methods)
    return _with_placements(base, placements, Slots(variants, way)), Held(methods, arrays)


def methods_with(held: Held, found: Mapping[Name, np.ndarray]) -> tuple[Method, ...]:
    """The methods of a bank once it has an adapter, those that it has already first."""
    return tuple(dict.fromkeys((*held.methods, *(n.method for n in found if n.method))))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def key_of(name: Name, methods: tuple[Method, ...]) -> Key:
    number = -1 if name.method is None else methods.index(name.method)
    return Key(name.part, name.path, number, name.name, name.depth)


def _blank(base: Frozen, name: Name, x: np.ndarray) -> np.ndarray:
    """What a slot has before an adapter is put there, in which slot 0 stays.

    Gradients go through the factors of all methods, so that those of others than plain LoRA must
    be numbers to compute with.
    """
    if name.part == "params":
        return to_host(base.base[name.path])
    if name.method == PLAIN_METHOD and name.name == GAIN:
        return np.ones_like(x)
    never = name.method == PLAIN_METHOD or name.name == ACTIVE or name.part == "trains"
    return np.zeros_like(x) if never else x


def new_array(base: Frozen, name: Name, x: np.ndarray, slots: int) -> Array:
    """An array with an axis of slots, for what an adapter has as x; all slots are blank."""
    blank, shape = _blank(base, name, x), new_shape(base, name, x, slots).shape
    return jnp.asarray(np.broadcast_to(np.expand_dims(blank, name.depth), shape))


def new_shape(base: Frozen, name: Name, x: np.ndarray, slots: int) -> jax.ShapeDtypeStruct:
    """The shape of `new_array`."""
    shape = (*x.shape[: name.depth], slots, *x.shape[name.depth :])
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(x.dtype))


def shape_of(x: Any) -> jax.ShapeDtypeStruct:
    """An array without its numbers, for which a program can be compiled as for the array."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    sharding, kind = (x.sharding if isinstance(x, Array) and x.committed else None), jax.typeof(x)
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=sharding, weak_type=kind.weak_type)


def trimmed(base: Frozen, held: Held, slots: Collection[int], way: str) -> tuple[Frozen, Held]:
    """The same without what no adapter in some slots needs: arrays, methods and placements."""

    def anywhere(key: Key, x: Array, unlike: Any) -> bool:
        return bool((np.take(to_host(x), sorted(slots), axis=key.depth) != unlike).any())

    flags = {key: x for key, x in held.arrays.items() if key.name == ACTIVE or key.part == "trains"}
    used = {(key.path, key.method) for key, x in flags.items() if anywhere(key, x, False)}
    numbers = {0, *(method for _, method in used if method >= 0)}
    renumbered = {-1: -1} | {old: new for new, old in enumerate(sorted(numbers))}

    def stays(key: Key, x: Array) -> bool:
        if key.part.startswith("shared"):
            return key.method in numbers
        idle = key.method == 0 and key.name == GAIN and not anywhere(key, x, 1)
        return (key.path, key.method) in used and not idle

    arrays = {
        key._replace(method=renumbered[key.method]): x
        for key, x in held.arrays.items()
        if stays(key, x)
    }
    if len(arrays) == len(held.arrays):
        return base, held
    methods = tuple(held.methods[number] for number in sorted(numbers))
    variant, placements = Slots(tuple(method.variant for method in methods), way), []
    for each in base.spec.placements:
        own = [held.methods[n].variant for path, n in used if path == each.use.path and n >= 0]
        if own:
            bias = each.bias if any(method.adapts_bias for method in own) else None
            each = dataclasses.replace(each, variant=variant, layers=variant, bias=bias)
        if own or each.storage is not None:
            placements.append(each if own else each.bare())
    spec = dataclasses.replace(base.spec, placements=tuple(placements))
    return dataclasses.replace(base, spec=spec), Held(methods, arrays)


def _with_placements(base: Frozen, placements: Sequence[Placement], variant: Slots) -> Frozen:
    placed = {each.use.path: each for each in base.spec.placements}
    for mine in placements:
        known = placed.get(mine.use.path)
        bias = mine.bias or (known.bias if known else None)
        placed[mine.use.path] = dataclasses.replace(mine, bias=bias, ranks=None)
    inside = tuple(
        dataclasses.replace(each, variant=variant, layers=variant) if each.adapts else each
        for each in (placed[path] for path in base.spec.paths if path in placed)
    )
    return dataclasses.replace(base, spec=dataclasses.replace(base.spec, placements=inside))


class NoMemoryError(ValueError):
    """An adapter needs more memory in a bank than there is now."""


def require_room(held: Held, found: Mapping[Name, np.ndarray], slots: int, donate: bool) -> None:
    """Raise a NoMemoryError if memory has no room for an adapter's new arrays; none is made.

    Args:
      held: what the bank has.
      found: what the adapter has.
      slots: how many copies the bank holds of each array.
      donate: whether the bank's arrays are taken; otherwise all of them are copied.
    """
    methods = methods_with(held, found)
    new = {name: x for name, x in found.items() if key_of(name, methods) not in held.arrays}
    if not new:
        return
    needed = added = slots * sum(x.nbytes for x in new.values())
    if not donate:
        needed += added + tree_bytes(held.arrays)
    room = available()
    if room is not None and needed > room:
        largest = max(new, key=lambda name: new[name].nbytes)
        what = "trains" if largest.part == "params" else "adapts"
        raise NoMemoryError(
            f"the adapter {what} '{largest.path or largest.name}', and all slots of a bank have "
            f"room for what any adapter has: {slots} copies of what is new take {size(needed)}, "
            f"and {size(room)} of memory are available; take a smaller capacity"
        )


def written(held: Held, slot: int, found: Mapping[Name, np.ndarray], donate: bool) -> Held:
    """The same with an adapter's arrays in a slot, and those of slot 0 where it has none."""
    mine = {key_of(name, held.methods): x for name, x in found.items()}
    given = {key: np.bool_(key in mine) for key in held.arrays}
    values = {key: _value(mine.get(key), x, key.depth) for key, x in held.arrays.items()}
    write = _write_over if donate else _write
    return dataclasses.replace(held, arrays=write(held.arrays, values, given, np.int32(slot)))


def _value(mine: np.ndarray | None, array: Array, axis: int) -> np.ndarray:
    shape = _without(array.shape, axis)
    return np.zeros(shape, array.dtype) if mine is None else mine.astype(array.dtype, copy=False)


def _write_all(
    arrays: dict[Key, Array], values: dict[Key, Array], given: dict[Key, Array], slot: Array
) -> dict[Key, Array]:
    def one(key: Key, array: Array) -> Array:
        before = (slice(None),) * key.depth
        value = jnp.where(given[key], values[key], array[(*before, 0)])
        return array.at[(*before, slot)].set(value)

    return {key: one(key, array) for key, array in arrays.items()}


_write = jax.jit(_write_all)
_write_over = jax.jit(_write_all, donate_argnums=0)


def compile_write(held: Held) -> None:
    """Compile what `written` runs with `donate`. Arrays may be shapes."""
    values = {
        key: jax.ShapeDtypeStruct(_without(x.shape, key.depth), x.dtype)
        for key, x in held.arrays.items()
    }
    given = dict.fromkeys(held.arrays, np.bool_(True))
    _write_over.lower(held.arrays, values, given, np.int32(0)).compile()
