r"""Compare the memory of full fine-tuning, LoRA and QLoRA, side by side.

    python -m experiments.memory --config=configs/instruct.py --methods=full,lora,qlora
    python -m experiments.memory

The first form uses a config's own model and batch. It shows the memory by formula
(`experiments.planning.memory_formula`), and that of the arrays and the compiled training step.

The second form, without --config, shows published model sizes, by formula alone. The batch is one
row of --tokens tokens, and each layer is recomputed in the backward pass. Full fine-tuning is in
float32 with float32 moments. LoRA and QLoRA have r=16 on all linear layers, and weights in bfloat16
or in NF4 with quantised scales.
"""

from absl import flags
from rich.console import Console

from experiments import cli
from experiments.distributed.devices import announce
from experiments.planning.memory_formula import published_sizes, side_by_side

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "A config file that has an argument `method`. By default, published model sizes are shown.",
)
_METHODS = flags.DEFINE_list(
    "methods", ["full", "lora", "qlora"], "The methods to compare: values of that argument."
)
_TOKENS = flags.DEFINE_integer(
    "tokens", 512, "How many tokens the row has, without --config.", lower_bound=2
)


def memory() -> None:
    console = Console(width=120)
    if _CONFIG.value is None:
        cli.refuse_ignored((_METHODS,), "it goes with --config")
        console.print(published_sizes(_TOKENS.value))
        console.print(
            "By formula; GiB, but cards in GB: 80 GB are 74.5 GiB. Of a layer's activations, only "
            "its input is kept."
        )
        return
    cli.refuse_ignored((_TOKENS,), "--config has a batch of its own")
    announce()
    console.print(side_by_side(str(_CONFIG.value), list(_METHODS.value)))
    console.print(
        "MiB. Temporaries are those beside the gradients; compiled ones as XLA assigns its buffers."
    )


if __name__ == "__main__":
    cli.main(memory)
