"""The medians that the authors of arXiv 2310.17513 printed, beside ours.

`draw_plots/draw_bitfit.ipynb` of their repository prints 33 medians over the seeds 0 to 4. For each
rank and seed it takes the first of all runs, and so does not say which runs these are:

* with trained biases, they are the runs of the proof's construction, which were the newest. So is
  the one of rank 0;
* with fixed biases, they are runs of the grid in the order in which a cluster ended them. The
  median is one of them, so `printed.csv` names the run of ours whose loss is nearest, of 60.
"""

import csv
import io
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from experiments.approximation.construction import construct, error_on_test
from experiments.approximation.networks import Setting, draw
from lora_jax.table import Cell, Number, Table

SEEDS = tuple(range(5))
Cells = Mapping[tuple[int, float, float], float]
"""The test loss of each (rank, rate, decay)."""


class Printed(NamedTuple):
    """A printed median, and the run that it is: of a seed, rate and decay, or the construction."""

    biases: str
    rank: int
    median: float
    run: tuple[int, float, float] | None


def printed() -> list[Printed]:
    text = Path(__file__).with_name("printed.csv").read_text(encoding="utf-8")
    return [
        Printed(
            row["biases"],
            int(row["rank"]),
            float(row["median"]),
            (int(row["seed"]), float(row["rate"]), float(row["decay"])) if row["seed"] else None,
        )
        for row in csv.DictReader(io.StringIO(text))
    ]


def constructed(setting: Setting, rank: int, seeds: tuple[int, ...] = SEEDS) -> list[float]:
    """The test loss of the proof's construction, for each seed."""
    losses = []
    for seed in seeds:
        pair = draw(setting, seed)
        losses.append(error_on_test(setting, pair, construct(setting, pair, seed, rank), seed))
    return losses


def beside_printed(fixed: Callable[[int], Cells | None]) -> Table:
    """Each printed number, the same run's here, and medians of the construction and of training.

    Args:
      fixed: the losses of the runs with fixed biases, of a seed; None if they have not run.
    """
    found = {seed: cells for seed in SEEDS if (cells := fixed(seed)) is not None}
    rows: list[list[Cell]] = []
    for each in printed():
        parameters = 64 * each.rank + (32 if each.biases == "trained" else 0)
        ours: float | None
        if each.run is None:
            ours, run = statistics.median(constructed(Setting(), each.rank)), "construction"
        else:
            seed, rate, decay = each.run
            ours = found.get(seed, {}).get((each.rank, rate, decay))
            run = f"seed {seed}, rate {rate:g}, decay {decay:g}"
        off = None if ours is None else Number(ours / each.median - 1, "+.1e")
        rows.append(
            [
                f"{each.biases}, rank {each.rank}",
                parameters,
                Number(each.median, ".7g"),
                "not run" if ours is None else Number(ours, ".7g"),
                off,
                run,
            ]
        )
    heads = ("biases", "parameters", "printed median", "ours", "relative difference", "run")
    return Table(heads, rows, "The Expressive Power of LoRA, random half of the figure")


def over_seeds(cells: Mapping[int, Cells], title: str) -> Table:
    """For each rank, the median, smallest and largest over seeds at the best rate and decay.

    The best are those of the smallest median, so that they lean to the low side.
    """
    first = next(iter(cells.values()))
    rows: list[list[Cell]] = []
    for rank in sorted({rank for rank, _, _ in first}):
        losses = {
            cell: [each[cell] for each in cells.values()] for cell in first if cell[0] == rank
        }
        cell, best = min(losses.items(), key=lambda item: statistics.median(item[1]))
        numbers = (statistics.median(best), min(best), max(best))
        rows.append(
            [rank, *(Number(each, ".3g") for each in numbers), f"{cell[1]:g}", f"{cell[2]:g}"]
        )
    heads = ("rank", "median", "smallest", "largest", "learning rate", "weight decay")
    return Table(heads, rows, title)
