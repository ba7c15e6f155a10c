"""Gradients as variants change them, for any optimiser of Optax."""

from typing import Any

import optax
from jax import Array

from lora_jax.transform.adapted_weight import over_stack, with_shared
from lora_jax.transform.placement import Frozen, Placement, Trainable, group_of
from lora_jax.variant import Factors


def preconditioned(
    tx: optax.GradientTransformation, frozen: Frozen
) -> optax.GradientTransformation:
    """`tx` on the gradients that variants make of those of their factors (`Variant.precondition`).

    Its state is that of `tx`; it is `tx` if no variant changes anything. `update` raises a
    `ValueError` if the trainables are not given as `params`.
    """
    chosen = [each for each in frozen.spec.adapted if group_of(each).preconditions]
    if not chosen:
        return tx
    inner = optax.with_extra_args_support(tx)

    def changed(placement: Placement, grads: Any, params: Trainable) -> dict[str, Array]:
        path, variant = placement.use.path, group_of(placement)
        shared = frozen.shared_by(params)[placement.variant]

        def of_a_matrix(gradients: dict[str, Array], factors: Factors) -> dict[str, Array]:
            return variant.precondition(gradients, with_shared(factors, shared))

        factors = Factors(params["adapters"][path], frozen.constants[path])
        of_a_stack = over_stack(of_a_matrix, len(placement.use.stack))
        return of_a_stack(grads["adapters"][path], factors)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("variants change gradients here: call update(grads, state, trainable)")
        adapters = {each.use.path: changed(each, updates, params) for each in chosen}
        updates = {**updates, "adapters": {**updates["adapters"], **adapters}}
        return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)
