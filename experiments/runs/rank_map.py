"""Draw the ranks that a run chose."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def rank_map(ranks: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a heat map of ranks, layers by matrices, as a PNG (see `rank_grid`)."""
    grid, columns = rank_grid(ranks)
    layers = len(grid)
    figure = Figure(figsize=(1.5 + 0.6 * len(columns), 2 + 0.35 * layers), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
    middle = np.nanmax(grid) / 2
    for (layer, number), rank in np.ndenumerate(grid):
        if not np.isnan(rank):
            color = "black" if rank > middle else "white"
            axes.text(number, layer, f"{rank:.0f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
    axes.set_yticks(range(layers))
    axes.set_ylabel("layer")
    figure.colorbar(image, label="rank")
    figure.savefig(path, dpi=120)


def rank_grid(ranks: Mapping[str, np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """The ranks as an array (layers, columns), NaN where there is no matrix, and the column names.

    Args:
      ranks: the ranks of each weight's matrices by path, in the shape of its stack. The first axis
        of a stack is the layer; each index of the other axes gets a column of its own. Weights that
        are not stacked share a column if their paths differ only in the layer number.
    """
    columns: dict[str, dict[int, int]] = {}
    for name, numbers in ranks.items():
        for index, rank in np.ndenumerate(numbers):
            layer, column = _place(name, index)
            columns.setdefault(column, {})[layer] = int(rank)
    layers = 1 + max(layer for column in columns.values() for layer in column)
    grid = np.full((layers, len(columns)), np.nan)
    for number, column in enumerate(columns.values()):
        for layer, rank in column.items():
            grid[layer, number] = rank
    return grid, short_names(list(columns))


def _place(path: str, index: tuple[int, ...]) -> tuple[int, str]:
    """The layer and the column of a matrix, by its weight's path and its index in the stack."""
    if index:
        layer, *rest = index
        return layer, "/".join([path, *map(str, rest)])
    parts = path.split("/")
    numbers = [number for number, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return 0, path
    layer = int(parts.pop(numbers[0]))
    return layer, "/".join(parts)


def short_names(names: list[str]) -> list[str]:
    """The names without the first and last path parts that all of them share."""
    parts = [name.split("/") for name in names]
    while len(parts[0]) > 1 and all(len(p) > 1 and p[0] == parts[0][0] for p in parts):
        parts = [p[1:] for p in parts]
    while len(parts[0]) > 1 and all(len(p) > 1 and p[-1] == parts[0][-1] for p in parts):
        parts = [p[:-1] for p in parts]
    return ["/".join(p) for p in parts]
