"""Whether the leaves of two trees are the same: types, shapes, bits and where they are placed."""

import jax
import jax.numpy as jnp
import numpy as np


def bits(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(got, want, placed=True):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        assert type(a) is type(b) and bits(a) == bits(b), path
        if hasattr(b, "dtype"):
            assert a.dtype == b.dtype and a.shape == b.shape, path
        if placed and isinstance(b, jax.Array):
            assert a.sharding == b.sharding and a.committed == b.committed, path
