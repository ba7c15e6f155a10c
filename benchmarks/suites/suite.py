"""A suite: which sides it compares with, how many turns it takes, and how it measures."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from benchmarks.cases import Group, Plan, chosen, smaller
from benchmarks.results import Measured
from benchmarks.turns import time_in_turns


@dataclasses.dataclass(frozen=True)
class Suite:
    """A value of `--suite`."""

    against: tuple[str, ...]
    """The values that `--against` may have."""
    turns: int
    run: Callable[[Plan], Iterator[Measured]]
    """Measures, and yields what it has found, one group after the other."""


def measure(groups: Iterable[Group], plan: Plan) -> Iterator[Measured]:
    """Time the chosen groups, one after the other, in their turns."""
    for group in chosen(groups, plan):
        small = smaller(group) if plan.smoke else group
        yield Measured.of(small, *time_in_turns(small, plan.turns))
