"""Which base an adapter was trained on: a digest of every frozen parameter's content.

A digest does not depend on how devices and processes divide an array, and the array is not moved
(see `checksum`). It depends on the type: the same weights in bfloat16, or in NF4, are another base.
Constants that files leave out (`Variant.remade`) are made again from the base and the kept key.
"""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array

from lora_jax.files.arrays import checksum, hexadecimal, is_key, type_name
from lora_jax.files.json_text import canonical
from lora_jax.transform.adapted_weight import over_stack
from lora_jax.transform.placement import Frozen, base_of, group_of, shared_arrays

SMALL = 2**16
"""NumPy sums arrays up to this many bytes, so that no program is compiled for them."""


class OtherBaseError(ValueError):
    """An adapter was trained on another base than the one that it is to be loaded onto."""

    def __init__(self, file: str, path: str, how: str):
        self.problem = f"{file} was trained on another base: '{path}' {how}"
        super().__init__(f"{self.problem}; any_base=True loads it anyway")


def base_digests(frozen: Frozen) -> dict[str, str]:
    """A digest of sixteen digits for every frozen parameter, by its path.

    The state of random generators (`random_state`) has none: another seed is not another base.
    Every process must call this. Empty if only the shapes of the base are known.
    """
    leaves = jax.tree.leaves(frozen.base)
    if not all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves):
        return {}
    left_out = random_state(frozen.base)
    parts = {
        path: value if isinstance(value, Mapping) else {"": value}
        for path, value in frozen.base.items()
        if path not in left_out
    }
    # Start all sums before waiting for the first.
    sums = {
        path: {name: sums_of(each) for name, each in part.items()} for path, part in parts.items()
    }
    digests = {}
    for path, part in parts.items():
        said = {n: [type_name(each), hexadecimal(sums[path][n])] for n, each in part.items()}
        digests[path] = hashlib.sha256(canonical(said).encode()).hexdigest()[:16]
    return digests


def random_state(base: Mapping[str, Any]) -> set[str]:
    """The paths of keys (`jax.random.key`), and of the counters that NNX keeps beside its keys."""
    keys = {path for path, value in base.items() if is_key(value)}
    beside = (path.rpartition("/") for path in keys)
    counters = {f"{folder}{slash}count" for folder, slash, name in beside if name == "key"}
    return keys | (counters & base.keys())


def require_base(
    saved: Mapping[str, str], here: Mapping[str, str], trained: Collection[str], where: str
) -> None:
    """Raise an OtherBaseError if frozen parameters differ from those of an adapter's training.

    Args:
      saved: what `base_digests` gave at that training.
      here: what it gives now; nothing is compared if that is nothing.
      trained: the paths that are trained in full, then or now, and so are in no base.
      where: the file, for the message.
    """
    if not here:
        return
    for path in dict.fromkeys([*here, *saved]):
        if saved.get(path) == here.get(path):
            continue
        if path in saved and path in here:
            how = "has other numbers here, or is stored in another form"
        elif path in trained:
            continue
        else:
            how = "is not in the base here" if path in saved else "is new here"
        raise OtherBaseError(where, path, how)


def sums_of(array: Any) -> Any:
    """The `checksum` of an array."""
    if isinstance(array, jax.Array) and array.nbytes <= SMALL and array.is_fully_addressable:
        array = np.asarray(array)
    return checksum(array)


KEY = "init_key"
"""The constant with the data of the key that `init` or `init_shared` was given."""
IMPLEMENTATIONS = {2: "threefry2x32", 4: "rbg"}
"""How a key draws, by the length of its data."""


def made_again(frozen: Frozen) -> dict[str, Array]:
    """The constants that variants say can be made again, by the names that they have in a file.

    Layers of one stack that differ are left out, and so is what is drawn from a key that was not
    kept, or starts from data.
    """
    groups = frozen.spec.groups()
    made = {}
    for each in frozen.spec.adapted:
        path, names = each.use.path, group_of(each).remade
        if names and not isinstance(each.layers, tuple) and not each.variant.needs:
            keys = _key(frozen.constants[path], each.use.stack_shape)
            init = over_stack(each.variant.init, len(each.use.stack))
            constants = init(keys, base_of(each, frozen.base[path])).constants
            made |= {f"constants/{path}/{n}": constants[n] for n in names if n in constants}
    for number, (variant, paths) in enumerate(groups.items()):
        if variant.remade and frozen.shared[number]:
            key = _key(frozen.shared[number], ())
            arrays = shared_arrays(key, variant, frozen.spec.placed(paths)).constants
            made |= {f"shared/{number}/{n}": arrays[n] for n in variant.remade if n in arrays}
    return made


def digest(array: Any) -> str:
    """A digest of an array's type, shape and content; every process must call this."""
    said = [type_name(array), list(array.shape), hexadecimal(sums_of(array))]
    return hashlib.sha256(canonical(said).encode()).hexdigest()[:16]


def _key(constants: Mapping[str, Array], stack: tuple[int, ...]) -> Array:
    """The kept key, one for each matrix of a stack; where none was kept, any will do."""
    if KEY not in constants:
        return jax.random.split(jax.random.key(0), stack) if stack else jax.random.key(0)
    data = constants[KEY]
    return jax.random.wrap_key_data(data, impl=IMPLEMENTATIONS[data.shape[-1]])
