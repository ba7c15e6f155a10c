"""Whether memory has room for the arrays that an adapter adds to a bank."""

from collections.abc import Mapping

import numpy as np

from lora_jax.serving.entries import Name
from lora_jax.serving.layout import Held, key_of, methods_with
from lora_jax.sharding.memory import available, size, tree_bytes


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
