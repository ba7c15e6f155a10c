"""Relative positions: buckets against their formula, skewing against indexing."""

import jax
import numpy as np
import pytest

from lora_jax.models.families.deberta_v2 import relative_indices, skew


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_skewing_is_indexing_by_distance(tokens):
    x = np.random.RandomState(0).standard_normal((2, 3, tokens, 2 * tokens - 1))
    i, j = np.indices((tokens, tokens))
    np.testing.assert_array_equal(jax.jit(skew)(x), x[..., i, j - i + tokens - 1].astype("f4"))


def test_distances_share_embeddings_by_their_logarithm():
    rows = relative_indices(600, 256, 256, 512)
    distances = np.arange(-599, 600)
    near = np.abs(distances) <= 128
    np.testing.assert_array_equal(rows[near], distances[near] + 256)
    assert np.all(np.diff(rows) >= 0) and np.all(np.diff(rows) <= 1)
    # 128 + ceil(127 log(d / 128) / log(511 / 128)) for d = 200 and 400, the farthest, and beyond
    assert rows[599 + np.array([200, 400, 510, 511, 599])].tolist() == [425, 489, 511, 511, 511]
    assert rows[599 - np.array([200, 400, 511, 599])].tolist() == [87, 23, 1, 0]
    plain = relative_indices(10, 4, -1, 4)
    assert plain.tolist() == [0] * 6 + [1, 2, 3, 4, 5, 6, 7] + [7] * 6
