"""Master weights: parameters that train in full in bfloat16, and their float32 copies."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lora_jax.transform.placement import Frozen, Trainable


class MasterState(NamedTuple):
    """The state of an optimiser, and what its steps add up to before it is rounded."""

    inner: Any
    masters: Trainable
    """Of the trainables, those in bfloat16, in float32."""


def with_master_weights(
    tx: optax.GradientTransformation, frozen: Frozen
) -> optax.GradientTransformation:
    """`tx` on float32 copies of bfloat16 parameters, which become the roundings of these copies.

    A bfloat16 number has 8 significant bits: a step below 1/512 of it would be lost, and as a
    moment of Adam it would not decay by 0.999 (Micikevicius et al. 2018, arXiv 1710.03740, section
    3.1). It is `tx` if no parameter that trains in full is in bfloat16; factors of adapters never
    are. Updates are in bfloat16, too, for `optax.apply_updates`. So a parameter that a step more
    than halves or doubles may miss its rounding, by 1/256 of the step, and goes on from where it
    is.
    """
    narrow = [use.path for use in frozen.spec.full if use.dtype == jnp.bfloat16]
    if not narrow:
        return tx
    inner = optax.with_extra_args_support(tx)

    def init(params: Any) -> MasterState:
        masters = {path: params["params"][path].astype(jnp.float32) for path in narrow}
        return MasterState(inner.init(_with(params, masters)), {"params": masters})

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("parameters are rounded here: call update(grads, state, trainable)")
        exact = at_masters(state, params)
        updates = jax.tree.map(lambda x, like: x.astype(like.dtype), updates, exact)
        steps: Any
        steps, new = inner.update(updates, state.inner, exact, **extra)
        moved = {path: exact["params"][path] + steps["params"][path] for path in narrow}
        rounded = {path: _to(x, params["params"][path]) for path, x in moved.items()}
        return _with(steps, rounded), MasterState(new, {"params": moved})

    return optax.GradientTransformationExtraArgs(init, update)


def at_masters(state: MasterState, trainable: Trainable) -> Trainable:
    """The trainables in float32; one that is not its master's rounding, as it was set, as it is."""

    def one(master: Array, x: Array) -> Array:
        now = x.astype(master.dtype)
        return jnp.where(_rounded(master) == now, master, now)

    masters = state.masters["params"].items()
    return _with(trainable, {path: one(x, trainable["params"][path]) for path, x in masters})


def _to(master: Array, x: Array) -> Array:
    """What `optax.apply_updates` adds to `x`, in its dtype, to make it the master's rounding."""
    return (_rounded(master) - x.astype(master.dtype)).astype(x.dtype)


def _rounded(x: Array) -> Array:
    """`x` rounded to bfloat16. XLA may leave out a cast there and back, and not this."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _with(tree: Any, params: Mapping[str, Array]) -> Any:
    return {**tree, "params": {**tree["params"], **params}}
