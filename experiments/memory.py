r"""What full fine-tuning, LoRA and QLoRA hold in memory, side by side.

    python -m experiments.memory --config=configs/instruct.py --methods=full,lora,qlora
    python -m experiments.memory

The first is of a config's own model and batch: by formula (`experiments.footprint`), and with the
temporaries that the compiled training step asks for. The second, without --config, is of published
sizes that this machine could not hold, by formula alone: one row of --tokens tokens, each layer
recomputed in the backward pass; full fine-tuning in float32 with float32 moments, LoRA and QLoRA
with r=16 on all linear layers, weights in bfloat16 or NF4 with quantised scales.
"""

from collections.abc import Sequence

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.build import build
from experiments.footprint import Memory, Setting, as_compiled, by_formula, setting_of
from experiments.sizes import SIZES
from experiments.trials import read_config
from lora_jax.models.llama_config import LlamaConfig
from lora_jax.models.pretrained import locate
from lora_jax.models.pretrained_decoder import read_decoder_config

_CONFIG = flags.DEFINE_string("config", None, "A config with an argument `method`.")
_METHODS = flags.DEFINE_list("methods", ["full", "lora", "qlora"], "Values of that argument.")
_TOKENS = flags.DEFINE_integer("tokens", 512, "Of the one row of published sizes.", lower_bound=2)

GIB = 2**30
CARDS = (16, 24, 40, 48, 80, 141)
"""GiB of accelerators that are sold, roughly: what a table looks for the smallest of."""
PARTS = ("weights", "trained", "gradients", "AdamW", "temporaries", "total")


def memory() -> None:
    console = Console(width=120)
    if _CONFIG.value is None:
        console.print(published_sizes(_TOKENS.value))
        console.print("By formula; GiB. Activations are kept for one layer input a layer.")
        return
    console.print(side_by_side(str(_CONFIG.value), list(_METHODS.value)))
    console.print(
        "MiB. Temporaries are those beside the gradients; compiled ones as XLA assigns its buffers."
    )


def published_sizes(tokens: int) -> Table:
    """The table of sizes that are published, and the smallest card that holds each."""
    made = Table("model", "method", *PARTS, "smallest card")
    settings = {
        "full": Setting(None, width=4, tokens=tokens, predicted=tokens, remat=True),
        "LoRA r=16": Setting(16, width=2, tokens=tokens, predicted=tokens, remat=True),
        "QLoRA r=16": Setting(16, "nf4_double", 2, tokens=tokens, predicted=tokens, remat=True),
    }
    for name, content in SIZES.items():
        config = LlamaConfig.from_json(content)
        for method, setting in settings.items():
            found = by_formula(config, setting)
            made.add_row(name, method, *_numbers(found, GIB), smallest_card(found))
    return made


def smallest_card(found: Memory) -> str:
    """The smallest of CARDS that a step fits into, with a twentieth of it to spare."""
    for size in CARDS:
        if found.total <= 0.95 * size * GIB:
            return f"{size} GiB"
    return f"none of {CARDS[-1]} GiB"


def side_by_side(config: str, methods: Sequence[str]) -> Table:
    """The table of a config's methods, by formula and as compiled."""
    made = Table("method", "", *PARTS)
    for method in methods:
        separator = "," if ":" in config else ":"
        found = read_config([f"--config={config}{separator}method={method}"])
        experiment = build(found.to_dict())
        shape = read_decoder_config(locate(experiment.config["model"]["name"]))
        formula = by_formula(shape, setting_of(experiment))
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


if __name__ == "__main__":
    cli.main(memory)
