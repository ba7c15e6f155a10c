"""Pictures: what is drawn where."""

import numpy as np
import pytest

from experiments.plots import rank_grid, rank_map

STACKED = {
    "layers/attention/query/kernel": np.array([3, 0, 2]),
    "layers/qkv/kernel": np.array([[1, 2], [3, 4], [5, 6]]),
}
APART = {
    "encoder/0/up": np.array(4),
    "encoder/0/down": np.array(1),
    "encoder/2/up": np.array(7),
    "pooler": np.array(5),
}
NAN = np.nan


@pytest.mark.parametrize(
    "ranks, columns, grid",
    [
        (
            STACKED,
            ["attention/query/kernel", "qkv/kernel/0", "qkv/kernel/1"],
            [[3, 1, 2], [0, 3, 4], [2, 5, 6]],
        ),
        (
            APART,
            ["encoder/up", "encoder/down", "pooler"],
            [[4, 1, 5], [NAN, NAN, NAN], [7, NAN, NAN]],
        ),
        (
            {"a/x/kernel": np.array([1]), "a/y/kernel": np.array([2])},
            ["x", "y"],
            [[1, 2]],
        ),
        ({"only/kernel": np.array(9)}, ["kernel"], [[9]]),
    ],
)
def test_ranks_are_a_table_of_layers_by_matrices(ranks, columns, grid):
    got, names = rank_grid(ranks)
    np.testing.assert_array_equal(got, np.array(grid, float))
    assert names == columns


@pytest.mark.parametrize("ranks", [STACKED, APART, {"w": np.array([0, 0])}])
def test_a_picture_is_written(ranks, tmp_path):
    rank_map(ranks, tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")
