"""What is compared: cases, contenders and ratios; and what the user asks for of them."""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from lora_jax.messages import nearest

CLASSES = 2
ALPHA = 16.0
"""The default of our variants; a product's scale is alpha / rank."""
BUDGET: dict[str, Any] = {"target_rank": 4, "t_init": 10, "t_final": 900, "delta_t": 1}
"""AdaLoRA's schedule, out of `STEPS` steps: all timed steps change ranks."""
STEPS = 10_000

Work = Literal[
    "step", "compilation", "forward", "generation", "trials", "data", "mixed", "put", "texts"
]
"""A module in `contenders` has the name of a side, and a function `NAME_work` for each of these."""
Weights = Literal["base", "merged", "unmerged"]


@dataclasses.dataclass(frozen=True)
class Case:
    """The work of a contender, which it does again and again."""

    work: Work = "step"
    model: str = "minilm"
    """A key of `models.PUBLISHED` or `models.RANDOM`."""
    method: str = "lora"
    """The name of a variant; `base` for no adapter at all."""
    targets: str = "all"
    """A key of `models.TARGETS`."""
    rank: int = 8
    """0: the method has its default settings, and adapts what its file suggests."""
    rows: int = 32
    """Of a batch."""
    tokens: int = 48
    """Of a row."""
    products: str = "float32"
    """The dtype of the operands of matrix products; sums and all else stay as they are."""
    dtype: str = "float32"
    """Of the parameters."""
    storage: str = "none"
    """`nf4`: frozen targets are stored quantised."""
    weights: Weights = "unmerged"
    """For inference: the base alone, the adapter merged into it, or beside it."""
    layers: int = 0
    """How many layers a random model has; 0 for its own number."""
    unroll: int | None = None
    """How many layers an iteration of the loop over layers applies; None for the default."""
    remat: bool = False
    """Whether each layer of a decoder is computed again in the backward pass."""
    written: int = 64
    """How many tokens are generated."""
    trials: int = 1
    """How many trials step in one program."""
    examples: int = 1000
    """How many examples are read."""
    adapters: int = 1
    """How many adapters share a base; the rows of a batch use as many of them as they can."""
    lanes: int = 8
    """How many texts are generated at a time, by continuous batching."""
    slot: int | None = None
    """The slot of a bank that all rows use; None for as many slots as they can."""
    dora: Literal["", "there", "gone"] = ""
    """Whether the last slot of a bank has DoRA, or had it until it was unloaded."""
    from_disk: bool = False
    """Whether an adapter is read from a file before it is put into a bank."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """A side with its case. A side is a library: `ours`, `hand`, `peft`, `qwix`."""

    side: str
    case: Case


@dataclasses.dataclass(frozen=True)
class Goal:
    """The value that a ratio must have at least or at most, and one that it may reach."""

    must: float
    reach: float

    def met(self, ratio: float) -> bool:
        """Whether a ratio is on the right side of `must`."""
        return ratio >= self.must if self.wants_more else ratio <= self.must

    @property
    def wants_more(self) -> bool:
        return self.reach > self.must


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A quantity of one contender of a group, over that of another one."""

    above: str
    below: str
    against: str
    """The value of `--against` that asks for it."""
    of: str = "seconds"
    """`seconds`, which have turns, or the name of a fact."""
    of_below: str = ""
    """The fact of `below`, if it is another one."""
    per_row: bool = False
    """Whether both quantities are divided by the rows of their batches."""
    goal: Goal | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Contenders that take turns."""

    name: str
    contenders: Mapping[str, Contender]
    ratios: tuple[Ratio, ...] = ()
    repeats: int = 3
    """How often a contender works in a turn, whose time is that of the fastest."""


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
    config: str = "configs/quickstart.py"
    """The last four are of the suites `sweep` and `start`."""


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


def smaller(group: Group) -> Group:
    """A group with tiny models of few layers, and small batches, in place of its own."""

    def shrink(case: Case) -> Case:
        model = "tiny bert" if case.model == "minilm" else "tiny llama"
        most = {"rows": 2, "layers": 2, "adapters": 3}
        fewer = {name: min(getattr(case, name), value) for name, value in most.items()}
        return dataclasses.replace(case, model=model, tokens=8, written=4, **fewer)

    return with_cases(group, shrink)


def with_cases(group: Group, change: Callable[[Case], Case]) -> Group:
    """A group whose contenders have changed cases."""
    own = {
        name: dataclasses.replace(each, case=change(each.case))
        for name, each in group.contenders.items()
    }
    return dataclasses.replace(group, contenders=own)
