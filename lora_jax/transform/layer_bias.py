"""The bias of an adapted layer, for methods that act on what a layer gives, its bias included."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jax import Array

from lora_jax.transform.adapted_weight import over_stack, with_shared
from lora_jax.transform.placement import Frozen, Placement, Trainable
from lora_jax.uses import Uses, WeightUse
from lora_jax.variant import Factors, Variant

NAMES = ("bias", "beta", "b")


def with_biases(placements: Sequence[Placement], uses: Uses) -> list[Placement]:
    """The placements, with the path of the layer's bias where the variant adapts it.

    Raises:
      ValueError: a variant adapts biases, and none of its weights has one, or two have the same.
    """
    found = [
        dataclasses.replace(each, bias=bias_beside(each.use, uses))
        if each.variant.adapts_bias
        else each
        for each in placements
    ]
    claimed = Counter(each.bias for each in found)
    if double := next((each for each in found if each.bias and claimed[each.bias] > 1), None):
        raise ValueError(
            f"'{double.bias}' is beside several weights whose {double.variant} would rescale it, "
            f"'{double.use.path}' among them"
        )
    asking = [each for each in found if each.variant.adapts_bias]
    if asking and not any(each.bias for each in asking):
        first = asking[0]
        raise ValueError(
            f"{first.variant} adapts biases, and none is beside '{first.use.path}' or its other "
            f"targets; a bias is named {', '.join(NAMES)}"
        )
    return found


def bias_beside(use: WeightUse, uses: Uses) -> str | None:
    """The path of a layer's bias: `a/bias` for `a/kernel`, `b` for `w`; None without one.

    The two differ in the last part of their names, and the bias has the weight's stacked axes and
    those of its outputs.
    """
    stem = re.sub(r"[^/._]*$", "", use.path)
    shape = (*use.stack_shape, *(use.shape[axis] for axis in use.outputs))
    paths = (f"{stem}{name}" for name in NAMES)
    return next((path for path in paths if path in uses and uses[path].shape == shape), None)


def effective_biases(
    arrays: Mapping[str, Any], trainable: Trainable, frozen: Frozen
) -> dict[str, Array]:
    """The biases that variants adapt, by path, in the shapes and dtypes that they have."""
    found, shared = {}, frozen.shared_by(trainable)
    for each in frozen.spec.placements:
        if each.bias is None:
            continue
        path, variant, stack = each.use.path, each.variant, each.use.stack_shape
        factors = Factors(trainable["adapters"][path], frozen.constants[path])
        bias = arrays[each.bias]

        def adapted(bias: Array, factors: Factors, variant: Variant = variant) -> Array:
            return variant.bias(bias, with_shared(factors, shared[variant]))

        rows = bias.reshape(*stack, each.use.matrix[1])
        rescaled = over_stack(adapted, len(stack))(rows, factors)
        found[each.bias] = rescaled.reshape(bias.shape).astype(bias.dtype)
    return found
