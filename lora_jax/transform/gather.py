"""Gather what methods ask to see of their weights (`Variant.needs`), in a few passes over batches.

That is the gradient of a weight, or the covariance of its inputs. A probe takes the place of an
adapter. The gradient of a loss by its trainables, which are zero, is the product of a matrix S with
a given basis, summed over all uses of the weight. So it passes through loops, `vmap` and
recomputation like any gradient, and S itself is never formed. No weight gets a dense gradient,
unless the function merges it.

Several passes make the basis better: S times the basis of one pass gives the basis of the next, as
in a randomised SVD (Halko et al. 2011, "Finding structure with randomness", algorithm 4.4).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.base import Need, Seen, SeenGradient, SeenInputs, replicated
from lora_jax.files.arrays import to_host
from lora_jax.methods.lowrank import LowRank
from lora_jax.transform.adapted_weight import over_stack
from lora_jax.transform.placement import (
    AdaptedSpec,
    Frozen,
    Placement,
    fold_path,
    variants_of,
)
from lora_jax.variant import Base, Factors, Variant, wide

Sums = dict[str, Array]
"""A probe's gradients of one matrix, summed over batches; or its basis."""
Numbers = dict[str, np.ndarray]
"""The same by NumPy, in float64, with stacked axes first."""


@dataclasses.dataclass(frozen=True)
class GradientProbe(LowRank):
    """S = dL/dW (in, out): W + A^T B has the gradients B S^T by A, and A S by B.

    One of A and B is zero and trained, the other one is the basis; `rank` is its size.
    """

    directions: int = 1
    """How many directions to give, at most `rank`."""
    shape: tuple[int, int] = (1, 1)
    """(in, out) of the matrix."""
    dtype: Any = None
    """That of all sums."""

    def start(self, key: Array) -> Sums:
        """A basis of outputs to begin with."""
        return {"b": jax.random.normal(key, (self.rank, self.shape[1]), self.dtype)}

    def factors(self, basis: Sums) -> Factors:
        """The factors of a pass, given a basis of outputs (`b`) or of inputs (`a`)."""
        ((name, rows),) = basis.items()
        other, size = ("a", self.shape[0]) if name == "b" else ("b", self.shape[1])
        zeros = jnp.zeros((self.rank, size), rows.dtype)
        return Factors({other: zeros}, {name: rows, "scale": jnp.ones((), rows.dtype)})

    def next(self, basis: Numbers, sums: Numbers) -> Numbers:
        """The basis of the next pass, for the other side."""
        return {name: _orthonormal(rows) for name, rows in sums.items()}

    def seen(self, basis: Numbers, sums: Numbers) -> SeenGradient:
        """The leading singular triplets, from a pass with a basis of inputs."""
        u, values, right = np.linalg.svd(sums["b"], full_matrices=False)
        n = self.directions
        left = u[..., :n].swapaxes(-1, -2) @ basis["a"]
        found: Any = left, values[..., :n], right[..., :n, :]
        return SeenGradient(*found)


@dataclasses.dataclass(frozen=True)
class InputProbe(Variant):
    """S = the sum of d d^T over all inputs x of a weight, with d = x - center.

    The weight itself is not adapted. What is summed depends on the inputs alone, not on the loss.
    """

    rank: int
    """The size of the basis."""
    directions: int
    """How many directions to give, at most `rank`."""
    shape: tuple[int, int]
    """(in, out) of the matrix."""
    dtype: Any
    """That of all sums."""
    path: str
    """The weight's, for messages."""
    constant_inputs: bool = False
    """Whether some of its inputs are the same for all batches (`WeightUse`)."""
    head: bool = False
    """Whether it is an output head, all of whose inputs count."""

    def start(self, key: Array) -> Sums:
        basis = jax.random.normal(key, (self.rank, self.shape[0]), self.dtype)
        return {"basis": basis, "center": jnp.zeros_like(basis[0])}

    def factors(self, basis: Sums) -> Factors:
        vector, number = basis["center"], jnp.zeros_like(basis["center"][0])
        sums = {"sketch": jnp.zeros_like(basis["basis"])}
        sums |= dict.fromkeys(("sum", "magnitude"), jnp.zeros_like(vector))
        return Factors(sums | dict.fromkeys(("squares", "count"), number), basis)

    def next(self, basis: Numbers, sums: Numbers) -> Numbers:
        center = basis["center"] + sums["sum"] / sums["count"][..., None]
        return {"basis": _orthonormal(_centered(basis, sums)), "center": center}

    def seen(self, basis: Numbers, sums: Numbers) -> SeenInputs:
        """The leading principal components."""
        count, n = sums["count"], self.directions
        mean = sums["sum"] / count[..., None]
        _, values, directions = np.linalg.svd(_centered(basis, sums), full_matrices=False)
        found: Any = {
            "directions": directions[..., :n, :],
            "variances": values[..., :n] / count[..., None],
            "variance": sums["squares"] / count - np.square(mean).sum(axis=-1),
            "mean": basis["center"] + mean,
            "magnitude": sums["magnitude"] / count[..., None],
        }
        return SeenInputs(**found)

    def weight(self, base: Base, factors: Factors) -> Array:
        return base.dense()

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        basis = dict(factors.constants)
        counts = self._counts(basis.pop("counts", None), x.shape[:-1])
        return base.dot(_observed(x, factors.trainable, basis, counts))

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        return base.dot_t(x)

    def _counts(self, counts: Array | None, rows: tuple[int, ...]) -> Array:
        """How often each input counts, given that of each token, for inputs (*rows, in)."""
        once = jnp.ones(rows, self.dtype)
        if counts is None or self.head:
            return once
        counts = replicated(counts).astype(self.dtype)
        axes = counts.ndim
        if rows[:axes] == counts.shape:
            return once * counts.reshape(*counts.shape, *[1] * (len(rows) - axes))
        if rows == (counts.size,):
            return counts.reshape(rows)
        if self.constant_inputs:
            return once
        if rows and rows == counts.shape[: len(rows)]:
            return counts.max(axis=tuple(range(len(rows), axes)))
        raise ValueError(
            f"'{self.path}': counts of shape {counts.shape} do not say which of its inputs, of "
            f"shape {(*rows, self.shape[0])}, count"
        )


@jax.custom_vjp
def _observed(x: Array, sums: Sums, basis: Sums, counts: Array) -> Array:
    """x itself; by `sums`, the gradient of whatever follows is what is summed of x."""
    return x


def _forward(
    x: Array, sums: Sums, basis: Sums, counts: Array
) -> tuple[Array, tuple[Array, Sums, Array]]:
    return x, (x, basis, counts)


def _backward(kept: tuple[Array, Sums, Array], gradient: Array) -> tuple[Array, Sums, Sums, Array]:
    x, basis, counts = kept
    x = replicated(x).reshape(-1, x.shape[-1]).astype(basis["center"].dtype)
    weights = counts.reshape(-1, 1)
    x = jnp.where(weights > 0, x, 0)  # what does not count need not be finite
    d = x - basis["center"][None]
    sums = {
        "sketch": (d @ basis["basis"].T).T @ (weights * d),
        "sum": (weights * d).sum(axis=0),
        "magnitude": (weights * jnp.abs(x)).sum(axis=0),
        "squares": (weights * jnp.square(d)).sum(),
        "count": weights.sum(),
    }
    return gradient, sums, *jax.tree.map(jnp.zeros_like, (basis, counts))


_observed.defvjp(_forward, _backward)


def _centered(basis: Numbers, sums: Numbers) -> np.ndarray:
    """The basis times the sum of (x - mean) (x - mean)^T."""
    total, count = sums["sum"][..., None, :], sums["count"][..., None, None]
    along = basis["basis"] @ total.swapaxes(-1, -2)
    return sums["sketch"] - along * total / count


def _orthonormal(rows: np.ndarray) -> np.ndarray:
    """Orthonormal rows that span the given ones."""
    return np.linalg.qr(rows.swapaxes(-1, -2))[0].swapaxes(-1, -2)


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


def gathered_shapes(placements: Sequence[Placement]) -> dict[str, Seen]:
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
    kinds = {each.kind for each in use.uses}
    of_parts = any(each.of_part for each in use.uses)
    if merged or of_parts or "convolution" in kinds or "product" not in kinds:
        how = ", ".join(merged) or ("slice" if of_parts else ", ".join(map(str, use.uses)))
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
