"""What is compared: cases, the contenders that do them, and the ratios between contenders."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

CLASSES = 2
ALPHA = 16.0
"""The default of our variants; a product's scale is alpha / rank."""
BUDGET: dict[str, Any] = {"target_rank": 4, "t_init": 10, "t_final": 900, "delta_t": 1}
"""AdaLoRA's schedule, out of `STEPS` steps: all timed steps change ranks."""
STEPS = 10_000

Work = Literal[
    "step", "compilation", "forward", "generation", "trials", "data", "mixed", "put", "texts"
]
"""Names of the files in `contenders` are a side and one of these."""
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
