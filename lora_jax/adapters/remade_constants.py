"""Constants that files leave out (`Variant.remade`): made again from the base and the kept key."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from lora_jax.adapters.base_digest import sums_of
from lora_jax.files.arrays import type_name
from lora_jax.files.canonical_json import canonical
from lora_jax.files.checksum import hexadecimal
from lora_jax.transform.adapted_weight import over_stack
from lora_jax.transform.placement import Frozen, base_of, group_of, shared_arrays

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
