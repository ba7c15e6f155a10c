"""Gather what methods ask to see of their weights (`Variant.needs`), in a few passes over batches.

Every pass takes the gradient of a loss by small arrays, one set for each weight that is asked for
(`lora_jax.transform.probes`). No weight gets a dense gradient, unless the function merges it.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.files.arrays import to_host
from lora_jax.statistics import Need, Seen
from lora_jax.transform.adapted_weight import over_stack
from lora_jax.transform.placement import (
    AdaptedSpec,
    Frozen,
    Placement,
    fold_path,
    variants_of,
)
from lora_jax.transform.probes import GradientProbe, InputProbe
from lora_jax.variant import wide

Loss = Callable[[Callable[..., Any], Any], Array]
"""`(model, batch) -> a number`, where `model(*inputs)` is the function with its parameters."""
Counts = Callable[[Any], Array]
"""`batch -> counts`, an array that says how often each token counts as an input; 0 for padding.

If it is (B, T), inputs are (B, T, ..., in), or (B T, in), or (B, in), which count as often as the
greatest of their tokens. Where a weight also multiplies what no batch changes (relative positions),
inputs that are neither (B, T, ..., in) nor (B T, in) count once; and so do all of an output head,
which may see a part of the tokens.
"""
Weights = Mapping[str, Placement]
"""The probed weights by path; the variant of each is its probe."""

PASSES = 4
"""Two make a randomised SVD, two more are one of its power iterations."""
WIDTH = 2
"""The size of a basis, over the number of directions that are asked for."""


def needs_of(placements: Iterable[Placement]) -> dict[str, Need]:
    """What has to be seen of each weight, by path."""
    found = {}
    for each in placements:
        needs = [variant.needs for variant in variants_of(each.layers)]
        most = max((need for need in needs if need), key=lambda n: n.directions, default=None)
        if most is not None:
            found[each.use.path] = most
    return found


def shapes(placements: Sequence[Placement]) -> dict[str, Seen]:
    """The shapes of what `gather` gives."""
    found, needs = {}, needs_of(placements)
    for use in (each.use for each in placements if each.use.path in needs):
        seen = needs[use.path].shapes(use.matrix, wide(jnp.dtype(use.dtype)))
        found[use.path] = jax.tree.map(functools.partial(_stacked, use.stack_shape), seen)
    return found


def gather(
    apply: Callable[..., Any],
    key: Array,
    full: Mapping[str, Array],
    frozen: Frozen,
    batches: Iterable[Any] | None,
    loss: Loss | None,
    counts: Counts | None = None,
) -> dict[str, Seen]:
    """What has to be seen of each weight, {path: seen}, with stacked axes first.

    Args:
      apply: `Adapted.apply`.
      key: for the first basis of each weight.
      full: the parameters that are trained in full, at their start.
      frozen: the other parameters; adapters play no part.
      batches, loss, counts: as in `Adapted.gather`.
    """
    needs = needs_of(frozen.spec.placements)
    if not needs:
        return {}
    spec = _probing(frozen.spec, needs)
    weights = {each.use.path: each for each in spec.adapted}
    batches = list(batches or ())
    for path, need in needs.items():
        if not batches or (need.of == "gradient" and loss is None):
            wanted = "batches and a loss" if need.of == "gradient" else "batches"
            raise ValueError(f"'{path}': its adapter starts from its {need.of}: give {wanted}")

    @functools.partial(jax.jit, donate_argnums=0)
    def add(sums: Any, constants: Any, full: Any, base: Any, batch: Any) -> Any:
        def objective(zeros: Any) -> Array:
            trainable = {"adapters": zeros, "params": full}
            probed = Frozen(base, constants, spec, _shared(spec, counts and counts(batch)))
            model = functools.partial(apply, trainable, probed)
            total = _everything(model(*batch)) if loss is None else loss(model, batch)
            return total / len(batches)

        zeros = jax.tree.map(jnp.zeros_like, sums)
        return jax.tree.map(jnp.add, sums, jax.grad(objective)(zeros))

    basis = _each(weights, "start", _keys(weights, key))
    for number in range(PASSES):
        factors = _each(weights, "factors", basis)
        sums, constants = ({path: f[part] for path, f in factors.items()} for part in (0, 1))
        for batch in batches:
            sums = add(sums, constants, dict(full), frozen.base, batch)
        method = "next" if number < PASSES - 1 else "seen"
        basis = {
            path: _by_numpy(each, method, basis[path], sums[path], needs[path])
            for path, each in weights.items()
        }
    return basis


def _probing(spec: AdaptedSpec, needs: Mapping[str, Need]) -> AdaptedSpec:
    """The same weights with probes in the place of adapters."""
    placements = []
    for each in spec.placements:
        if each.use.path in needs:
            probe = _probe(each, needs[each.use.path])
            placements.append(dataclasses.replace(each, variant=probe, layers=probe))
        elif each.storage is not None:
            placements.append(each.bare())
    return dataclasses.replace(spec, placements=tuple(placements))


def _shared(spec: AdaptedSpec, counts: Array | None) -> tuple[dict[str, Array], ...]:
    """What the weights of each probe share: one array of counts for all that see inputs."""
    return tuple(
        {"counts": counts} if isinstance(probe, InputProbe) and counts is not None else {}
        for probe in spec.groups()
    )


def _probe(placement: Placement, need: Need) -> GradientProbe | InputProbe:
    use = placement.use
    # The covariance of inputs is a matrix of inputs by inputs, however few outputs there are.
    most = use.matrix if need.of == "gradient" else use.matrix[:1]
    size, dtype = min(WIDTH * need.directions, *most), wide(jnp.dtype(use.dtype))
    given = {"directions": need.count(use.matrix), "shape": use.matrix, "dtype": dtype}
    if need.of == "gradient":
        return GradientProbe(rank=size, **given)
    merged = dict.fromkeys(each.merges for each in use.uses if each.merges)
    if merged or "product" not in {each.kind for each in use.uses}:
        how = ", ".join(merged) or ", ".join(map(str, use.uses))
        raise ValueError(f"'{use.path}': its inputs cannot be seen where it is used by {how}")
    also = {"path": use.path, "constant_inputs": use.constant_inputs}
    also |= {"head": use.output_embedding}
    return InputProbe(rank=size, **given, **also)


def _keys(weights: Weights, key: Array) -> dict[str, Array]:
    """A key for each matrix of each weight; it depends on the path and the given key alone."""
    found = {}
    for path, each in weights.items():
        own, stack = fold_path(key, f"gather/{path}"), each.use.stack_shape
        found[path] = jax.random.split(own, stack) if stack else own
    return found


def _each(weights: Weights, method: str, *trees: Mapping[str, Any]) -> dict[str, Any]:
    """A method of each weight's probe, mapped over its stack."""

    @jax.jit
    def compute(*trees: Mapping[str, Any]) -> dict[str, Any]:
        return {
            path: over_stack(getattr(each.variant, method), len(each.use.stack))(
                *(tree[path] for tree in trees)
            )
            for path, each in weights.items()
        }

    return compute(*trees)


def _everything(outputs: Any) -> Array:
    """A number that depends on all real outputs."""
    real = [x for x in jax.tree.leaves(outputs) if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum((x.sum().astype(float) for x in real), start=jnp.zeros((), float))


def _by_numpy(placement: Placement, method: str, basis: Any, sums: Any, need: Need) -> Any:
    """What a method of a weight's probe makes of the basis and the sums of a pass."""
    known = jax.tree.map(lambda x: to_host(x).astype(float), (basis, sums))
    _, found = known
    finite = all(np.isfinite(x).all() for x in found.values())
    if not finite or not any(np.any(x) for name, x in found.items() if name != "count"):
        path = placement.use.path
        raise ValueError(f"'{path}': its {need.of} over these batches is zero, or not finite")
    probe: Any = placement.variant
    made = getattr(probe, method)(*known)
    return jax.tree.map(lambda x: jnp.asarray(x, probe.dtype), made)


def _stacked(stack: tuple[int, ...], leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*stack, *leaf.shape), leaf.dtype)
