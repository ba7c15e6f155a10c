"""The shapes of an adapted function's arrays, for plans and shardings; no data are needed."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from lora_jax.partition import split_arrays
from lora_jax.statistics import Seen
from lora_jax.transform.adapt import Adapted
from lora_jax.transform.choose import choose
from lora_jax.transform.discover import discover
from lora_jax.transform.gather import shapes
from lora_jax.transform.placement import Frozen, PyTree, Trainable


def init_shapes(
    adapted: Adapted,
    key: Array,
    params: PyTree,
    /,
    *args: Any,
    seen: Mapping[str, Seen] | None = None,
    **kwargs: Any,
) -> tuple[Trainable, Frozen]:
    """The shapes of what `adapted.init` gives; settings in the user's tree stay as they are.

    Args:
      key, params, *args, **kwargs: as in `Adapted.init`; arrays or their shapes.
      seen: as in `Adapted.init`; if it is left out, EVA's ranks are those before their division.
    """
    arrays, rebuild = split_arrays(params)

    def init(key: Array, arrays: list[Any], seen: Any) -> tuple[Trainable, Frozen]:
        return adapted.init(key, rebuild(arrays), *args, seen=seen, **kwargs)

    if seen is not None:
        return jax.eval_shape(functools.partial(init, seen=seen), key, arrays)
    return jax.eval_shape(init, key, arrays, seen_shapes(adapted, params, *args, **kwargs))


def seen_shapes(adapted: Adapted, params: PyTree, /, *args: Any, **kwargs: Any) -> dict[str, Seen]:
    """The shapes of what `adapted.gather` gives."""
    if not any(variant is not None and variant.needs for _, variant in adapted.rules):
        return {}
    uses = discover(adapted.forward, params, *args, **kwargs)
    placements, _ = choose(adapted.rules, adapted.also_train, adapted.storage, uses)
    return shapes(placements)
