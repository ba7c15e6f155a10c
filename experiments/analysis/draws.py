"""Which runs of a method are independent, and so count in a test or an interval: seeds or draws.

Runs of one draw of the training examples share these, and with them a part of their scores, however
their seeds differ. Counted as independent, they would claim too much. Where half of the variance of
a difference comes from the draw, a test at 5% found a difference that is not there in 18% of cases
with 15 runs of 5 draws, and in 29% with 15 runs of 3. So where there are several draws, each counts
once, with the mean of its runs, and what is found is of new draws. If draws have seeds in common,
it is of these seeds. With one draw, or where all examples are trained on, each seed counts.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

Number = tuple[int, int]
"""A run's seed and its draw of the examples (`recorded_runs.Run.number`)."""


def groups(numbers: Iterable[Number]) -> list[list[Number]]:
    """The numbers in groups that count once: those of a draw, or each, if they have one draw."""
    by_draw: dict[int, list[Number]] = {}
    for number in sorted(numbers):
        by_draw.setdefault(number[1], []).append(number)
    found = list(by_draw.values())
    return found if len(found) > 1 else [[number] for own in found for number in own]


def means(values: Mapping[Number, Any]) -> np.ndarray:
    """The mean of each group's values, numbers or arrays, (groups, ...)."""
    return np.array([np.mean([values[n] for n in own], axis=0) for own in groups(values)])


def are_shared(numbers: Collection[Number]) -> bool:
    """Whether several runs count as one, as they share a draw."""
    return len(groups(numbers)) < len(numbers)


def share_seeds(numbers: Collection[Number]) -> bool:
    """Whether several draws have a seed in common, so that nothing is found of new seeds."""
    return len({seed for seed, _ in numbers}) < len(numbers)
