r"""What full fine-tuning, LoRA and QLoRA hold in memory, side by side.

    python -m experiments.memory --config=configs/instruct.py --methods=full,lora,qlora
    python -m experiments.memory

The first is of a config's own model and batch: by formula (`experiments.planning.memory_formula`),
and with the temporaries that the compiled training step asks for. The second, without --config, is
of published sizes that this machine could not hold, by formula alone: one row of --tokens tokens,
each layer recomputed in the backward pass; full fine-tuning in float32 with float32 moments, LoRA
and QLoRA with r=16 on all linear layers, weights in bfloat16 or NF4 with quantised scales.
"""

from absl import flags
from rich.console import Console

from experiments import cli
from experiments.planning.memory_tables import published_sizes, side_by_side

_CONFIG = flags.DEFINE_string("config", None, "A config with an argument `method`.")
_METHODS = flags.DEFINE_list("methods", ["full", "lora", "qlora"], "Values of that argument.")
_TOKENS = flags.DEFINE_integer("tokens", 512, "Of the one row of published sizes.", lower_bound=2)


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


if __name__ == "__main__":
    cli.main(memory)
