"""Linear combinations of what is trained without an adapter: heads, whole weights, biases."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lora_jax.arithmetic.updates import Adapter, placements
from lora_jax.transform.placement import Frozen, effective_biases, weight_of, with_shared_arrays
from lora_jax.variant import Factors


def paths_in_full(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The dtypes of the parameters that any adapter trains in full, or whose bias it changes."""
    found: dict[str, Any] = {}
    for trainable, frozen in adapters:
        arrays = {**frozen.base, **trainable["params"]}
        biases = [each.bias for each in frozen.spec.placements if each.bias]
        found |= {path: arrays[path].dtype for path in [*trainable["params"], *biases]}
    return found


def combined_in_full(
    path: str,
    adapters: Sequence[Adapter],
    coefficients: Sequence[float],
    starts: Sequence[Mapping[str, Any]],
) -> np.ndarray:
    """P = S_1 + sum c_i (P_i - S_i), from the values S_i before training to the values P_i.

    Heads may begin at random, each run's at its own. Where the coefficients sum to 1, the result is
    the mean sum c_i P_i, whatever the starts.

    Args:
      adapters: results of `updates.in_float64`. P_i is the value that the model of one acts with.
      starts: for each adapter, S_i of parameters that it trains in full; others are in its base.

    Raises:
      ValueError: shapes differ, or an S_i matters, and is not known.
    """
    values = [_effective(path, *each) for each in adapters]
    shapes = [list(each.shape) for each in values]
    if any(each != shapes[0] for each in shapes):
        raise ValueError(
            f"'{path}' has other shapes in other adapters, {', '.join(map(str, shapes))}; `keep` "
            "leaves it as the first has it"
        )
    total = sum(c * value for c, value in zip(coefficients, values, strict=True))
    if abs(1 - sum(coefficients)) < 1e-6:
        return np.asarray(total)
    begun = [
        _begun(path, frozen, start, adapters)
        for (_, frozen), start in zip(adapters, starts, strict=True)
    ]
    rest = begun[0] - sum(c * each for c, each in zip(coefficients, begun, strict=True))
    return np.asarray(total + rest)


def _begun(
    path: str, own: Frozen, start: Mapping[str, Any], adapters: Sequence[Adapter]
) -> np.ndarray:
    """The value of a parameter before any training of an adapter."""
    if path in start and path not in own.base:
        return np.asarray(start[path], np.float64)
    for frozen in (own, *(each for _, each in adapters)):
        if path in frozen.base:
            return _stored(path, frozen)
    raise ValueError(
        f"'{path}' is trained in full by every adapter, and weights that do not sum to 1 need "
        "its value before training; `start` gives it"
    )


def _effective(path: str, trainable: Any, frozen: Frozen) -> np.ndarray:
    """The value that the model acts with: trained, adapted, or the base's."""
    arrays = {**frozen.base, **trainable["params"]}
    if each := next((each for each in frozen.spec.placements if each.bias == path), None):
        spec = dataclasses.replace(frozen.spec, placements=(each,))
        one = {path: jnp.asarray(arrays[path], jnp.float64)}
        shared = frozen.shared_by(trainable)[each.variant]
        alone = with_shared_arrays(trainable, dataclasses.replace(frozen, spec=spec), [shared])
        return np.asarray(effective_biases(one, *alone)[path])
    if path in trainable["params"]:
        return np.asarray(trainable["params"][path], np.float64)
    if each := placements(frozen).get(path):
        return _dense(each, trainable, frozen)
    return _stored(path, frozen)


def _stored(path: str, frozen: Frozen) -> np.ndarray:
    """A parameter of the base."""
    quantised = {each.use.path: each for each in frozen.spec.placements if each.storage}
    if path not in quantised:
        return np.asarray(frozen.base[path], np.float64)
    return _dense(quantised[path].bare(), {"adapters": {}}, frozen)


def _dense(placement: Any, trainable: Any, frozen: Frozen) -> np.ndarray:
    """A whole weight in the model's own layout, in float64."""
    weight = weight_of(placement, trainable, frozen, None)
    wide = dataclasses.replace(
        weight, base=weight.base.astype(jnp.float64), dtypes=(jnp.dtype(jnp.float64),)
    )
    return np.asarray(
        wide.dense(frozen.shared_by(trainable).get(placement.variant, Factors({}, {})))
    )
