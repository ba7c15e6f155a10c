"""Tables of the memory that training takes, from `experiments.planning.memory_formula`."""

from collections.abc import Sequence

from rich.table import Table

from experiments.planning.memory_formula import Memory, Setting, as_compiled, by_formula, setting_of
from experiments.planning.model_sizes import SIZES
from experiments.setup import config_errors
from experiments.setup.config import parse
from experiments.setup.experiment import build
from experiments.setup.read_config import read_config
from lora_jax.methods.lowrank import LowRank
from lora_jax.models.families.llama import LlamaConfig

GIB = 2**30
GB = 10**9
CARDS = (16, 24, 40, 48, 80, 141)
"""Memory sizes of common accelerators in GB, as `topologies` takes them: 80 GB are 74.5 GiB."""
PARTS = ("weights", "trained", "gradients", "AdamW", "temporaries", "total")


def published_sizes(tokens: int) -> Table:
    """A table of published model sizes, with the smallest card that each method fits on."""
    made = Table("model", "method", *PARTS, "smallest card")
    settings = {
        "full": Setting(None, width=4, tokens=tokens, predicted=tokens, remat=True),
        "LoRA r=16": Setting(
            LowRank(rank=16), width=2, tokens=tokens, predicted=tokens, remat=True
        ),
        "QLoRA r=16": Setting(
            LowRank(rank=16), "nf4_double", 2, tokens=tokens, predicted=tokens, remat=True
        ),
    }
    for name, content in SIZES.items():
        config = LlamaConfig.from_json(content)
        for method, setting in settings.items():
            found = by_formula(config, setting)
            made.add_row(name, method, *_numbers(found, GIB), smallest_card(found))
    return made


def smallest_card(found: Memory) -> str:
    """The smallest of CARDS that a step fits on, with 5% of its memory to spare."""
    for size in CARDS:
        if found.total <= 0.95 * size * GB:
            return f"{size} GB"
    return f"none of {CARDS[-1]} GB"


def side_by_side(config: str, methods: Sequence[str]) -> Table:
    """A table of the memory of a config's methods, by formula and as compiled."""
    made = Table("method", "", *PARTS)
    for method in methods:
        separator = "," if ":" in config else ":"
        try:
            found = read_config([f"--config={config}{separator}method={method}"])
        except ValueError as error:
            unknown = config_errors.unknown_argument(error)
            if unknown is None or unknown.key != "method":
                raise
            raise ValueError(
                f"--config={config} has no argument 'method' with values to compare: choose a "
                "config that has one, such as configs/instruct.py"
            ) from error
        experiment = build(parse(found.to_dict()))
        formula = by_formula(experiment.texts.shape, setting_of(experiment))
        made.add_row(method, "formula", *_numbers(formula, 2**20))
        made.add_row("", "compiled", *_numbers(as_compiled(experiment), 2**20))
        made.add_section()
    return made


def _numbers(found: Memory, unit: int) -> list[str]:
    digits = 1 if unit == GIB else 0
    values = (
        found.weights,
        found.trained,
        found.gradients,
        found.optimizer,
        found.temporaries,
        found.total,
    )
    return [f"{value / unit:,.{digits}f}" for value in values]
