"""What the user asked for: which sides, how often, and at which size; and how groups are run."""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from experiments.benchmarks.cases import Case, Group
from experiments.benchmarks.results import Measured
from experiments.benchmarks.turns import time_in_turns
from lora_jax.suggest import nearest

PACKAGES = {"peft": ("torch", "transformers", "peft"), "qwix": ("qwix",)}
"""What sides need, beside this project."""
SIDES = ("peft", "full", "hand", "merged", "qwix", "lora")
"""The values of `--against`."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The user's choices."""

    against: tuple[str, ...] = ()
    turns: int = 10
    smoke: bool = False
    """Whether models and batches are tiny."""
    cases: tuple[str, ...] = ()
    """Parts of the names of the wanted groups; none for all groups."""
    sizes: tuple[str, ...] = ("8x16",)
    trials: int = 8
    steps: int = 200
    executions: tuple[str, ...] = ("chosen",)
    config: str = "configs/quickstart.py"
    """The last five are of the suites `sweep` and `start`."""


def sides(suite: str, known: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """The sides that a suite is timed against: the wanted ones, or all that are installed.

    Args:
      known: those of the suite.

    Raises:
      ValueError: the suite has no such side, or a package is not installed.
    """
    for side in wanted:
        if side not in known:
            has = ", ".join(known) or "none"
            close = "" if side in SIDES else f"; nearest: {nearest(side, SIDES)}"
            raise ValueError(f"--against={side}: suite {suite} has {has}{close}")
        if missing := _missing(side):
            raise ValueError(f"--against={side}: {_not_installed(missing)}")
    for side in () if wanted else known:
        if missing := _missing(side):
            print(f"without --against={side}: {_not_installed(missing)}", file=sys.stderr)
    return tuple(wanted) or tuple(side for side in known if not _missing(side))


def _missing(side: str) -> str | None:
    names = PACKAGES.get(side, ())
    return next((name for name in names if importlib.util.find_spec(name) is None), None)


def _not_installed(name: str) -> str:
    return f"{name} is not installed; `make bench` installs it"


def chosen(groups: Iterable[Group], plan: Plan) -> list[Group]:
    """The groups with a wanted name, with the wanted ratios and the contenders that these need.

    A group without ratios is only timed, and stays whole.

    Raises:
      ValueError: no group has such a name.
    """
    groups = list(groups)
    for part in plan.cases:
        if not any(part in group.name for group in groups):
            names = nearest(part, [group.name for group in groups])
            raise ValueError(f"--cases={part}: no such group; nearest: {names}")
    found = []
    for group in groups:
        if plan.cases and not any(part in group.name for part in plan.cases):
            continue
        ratios = tuple(ratio for ratio in group.ratios if ratio.against in plan.against)
        if ratios:
            needed = {name for ratio in ratios for name in (ratio.above, ratio.below)}
            own = {name: each for name, each in group.contenders.items() if name in needed}
            found.append(dataclasses.replace(group, ratios=ratios, contenders=own))
        elif not group.ratios:
            found.append(group)
    if not found:
        raise ValueError("--against and --cases leave nothing to time")
    return found


def measure(groups: Iterable[Group], plan: Plan) -> Iterator[Measured]:
    """Time the chosen groups, one after the other, in their turns."""
    for group in chosen(groups, plan):
        small = smaller(group) if plan.smoke else group
        yield Measured.of(small, *time_in_turns(small, plan.turns))


def smaller(group: Group) -> Group:
    """A group with tiny models and batches in place of its own."""

    def shrink(case: Case) -> Case:
        model = "tiny bert" if case.model == "minilm" else "tiny llama"
        rows, adapters = min(case.rows, 2), min(case.adapters, 3)
        return dataclasses.replace(
            case, model=model, rows=rows, tokens=8, written=4, adapters=adapters
        )

    return with_cases(group, shrink)


def with_cases(group: Group, change: Callable[[Case], Case]) -> Group:
    """A group whose contenders have changed cases."""
    own = {
        name: dataclasses.replace(each, case=change(each.case))
        for name, each in group.contenders.items()
    }
    return dataclasses.replace(group, contenders=own)
