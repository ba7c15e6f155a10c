"""Draw how far adapters move the weights of a model, and which directions they share."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from experiments.runs.rank_map import short_names

COLUMNS = 4


def adapter_distance(
    norms: Mapping[str, Mapping[str, np.ndarray]], similarity: Mapping[str, np.ndarray], path: Path
) -> None:
    """Write a PNG: |dW| / |W| of each weight, and below it phi(i, j) as a heat map for each.

    Args:
      norms: the relative norms of each adapter's weights, by the adapter's name and the path.
      similarity: `lj.distance.subspace_similarity` of two adapters; empty for one.
    """
    lines = -(-len(similarity) // COLUMNS)
    width, height = (3 * COLUMNS, 3 + 2.6 * lines) if lines else (3 * COLUMNS, 3)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.add_gridspec(1 + lines, COLUMNS)
    _draw_norms(figure.add_subplot(grid[0, :]), norms)
    names = short_names(list(similarity)) if similarity else []
    image = None
    for number, (name, phi) in enumerate(zip(names, similarity.values(), strict=True)):
        line, column = divmod(number, COLUMNS)
        axes = figure.add_subplot(grid[1 + line, column])
        image = _draw_similarity(axes, phi)
        axes.set_title(name, fontsize="small")
    if image is not None:
        figure.colorbar(image, ax=figure.axes[1:], label=r"$\phi(i, j)$, mean over layers")
    figure.savefig(path, dpi=120)


def _draw_norms(axes: Axes, norms: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """One group of bars for each weight, a bar for each adapter; lines span its layers."""
    paths = list(dict.fromkeys(path for each in norms.values() for path in each))
    width = 0.8 / len(norms)
    for number, (name, each) in enumerate(norms.items()):
        known = [path for path in paths if path in each]
        at = np.asarray([paths.index(path) for path in known]) + (number + 0.5) * width - 0.4
        mean, least, most = (
            np.asarray([f(each[path]) for path in known]) for f in (np.mean, np.min, np.max)
        )
        axes.bar(at, mean, width, label=name)
        axes.vlines(at, least, most, colors="black", linewidths=1)
    axes.set_xticks(range(len(paths)), short_names(paths), rotation=20, ha="right")
    axes.set_ylabel("|dW| / |W|")
    axes.legend(fontsize="small")


def _draw_similarity(axes: Axes, phi: np.ndarray) -> AxesImage:
    """The mean over layers; white where no layer has as many directions."""
    flat = phi.reshape(-1, *phi.shape[-2:])
    known = (~np.isnan(flat)).sum(axis=0)
    mean = np.where(known, np.nansum(flat, axis=0) / np.maximum(known, 1), np.nan)
    rows, columns = mean.shape
    axes.set_xlabel("j")
    axes.set_ylabel("i")
    extent = (0.5, columns + 0.5, rows + 0.5, 0.5)
    return axes.imshow(mean, cmap="viridis", vmin=0, vmax=1, extent=extent, aspect="auto")
