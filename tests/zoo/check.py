"""Adapting a case of the zoo, and what must hold for it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lora_jax as lj
from lora_jax.compiled.by_numpy import ByNumpy
from lora_jax.partition import is_array, matches
from lora_jax.variant import wide
from variants.lora import LoRA
from zoo.case import Case


@dataclasses.dataclass(frozen=True)
class Named(LoRA):
    """LoRA that writes down where its weight is merged."""

    name: str = ""
    merges: Any = dataclasses.field(default=None, compare=False)

    def weight(self, base: lj.Base, factors: lj.Factors) -> jax.Array:
        self.merges.add(self.name)
        return super().weight(base, factors)

    def init(self, key: jax.Array, base: lj.Base) -> lj.Factors:
        """As LoRA's, but A is NumPy's: there is no generator to compile."""
        a = np.random.default_rng(0).uniform(-0.5, 0.5, (self.rank, base.shape[0]))
        dtype = wide(base.dtype)
        b, scale = jnp.zeros((self.rank, base.shape[1]), dtype), self.scaling()
        return lj.Factors(
            {"a": jnp.asarray(a.astype(dtype)), "b": b}, {"scale": jnp.asarray(scale, dtype)}
        )


def is_target(case: Case, path: str) -> bool:
    return any(matches(pattern, path) for pattern in case.targets)


def adapt(case: Case, merges: set[str] | None = None) -> lj.Adapted:
    """The case with all its targets adapted; `merges` collects those that are merged."""
    uses = lj.discover(case.forward, case.params, *case.args, **case.kwargs)
    seen = set() if merges is None else merges
    variants = {
        path: Named(rank=case.rank, alpha=2.0, name=path, merges=seen)
        for path in uses
        if is_target(case, path)
    }
    return lj.adapt(case.forward, targets=variants)


def random_like(tree: Any, seed: int) -> Any:
    """A tree of small normal numbers: factors that are not zero, tangents, cotangents."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=0.3, size=leaf.shape).astype(leaf.dtype)), tree
    )


def by_numpy(function: Callable[[], Any]) -> Callable[[], Any]:
    """The function, traced and then evaluated by NumPy: most of what is compiled runs once."""

    def run() -> Any:
        closed, form = jax.make_jaxpr(function, return_shape=True)()
        results = ByNumpy(wide=False)(closed.jaxpr, closed.consts, [])
        treedef = jax.tree.structure(form)
        return jax.tree.unflatten(treedef, results)

    return run


def arrays(tree: Any) -> list[Any]:
    """The leaves that are arrays, which a compiled function may return."""
    return [leaf for leaf in jax.tree.leaves(tree) if is_array(leaf)]


def scalar_of(outputs: Any) -> jax.Array:
    """Some number that depends on every real entry of the outputs."""
    total = jnp.zeros(())
    for seed, leaf in enumerate(jax.tree.leaves(outputs)):
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            total += jnp.sum(leaf * random_like(leaf, seed)).astype(total.dtype)
    return total


def derivative(function: Callable[[Any], Any], at: Any, reverse: bool = True) -> tuple[Any, Any]:
    """The outputs, and the gradient of `scalar_of` them by `at` (or one directional derivative)."""

    def scalar(at: Any) -> tuple[jax.Array, Any]:
        outputs = function(at)
        return scalar_of(outputs), outputs

    if reverse:
        gradient, outputs = jax.grad(scalar, has_aux=True)(at)
    else:
        _, gradient, outputs = jax.jvp(scalar, (at,), (random_like(at, seed=9),), has_aux=True)
    return outputs, gradient


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """Equal structure and dtypes, and equal numbers relative to the largest of each array."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for mine, theirs in pairs:
        if not is_array(theirs):
            assert mine is theirs
            continue
        mine, theirs = jnp.asarray(mine), jnp.asarray(theirs)
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        if jnp.issubdtype(mine.dtype, jax.dtypes.prng_key):
            continue
        mine, theirs = np.asarray(mine), np.asarray(theirs)
        scale = np.abs(theirs).max(initial=1e-30)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * scale)
