r"""Find out what memory a training step takes, or what a table's runs cost, without devices.

    python -m experiments.plan --config=configs/llama2_70b.py --topology=v5e:4x4 --mesh=1,4,4
    python -m experiments.plan --config=configs/instruct.py:method=qlora --topology=h100:1
    python -m experiments.plan --table=lora_table2 --device=h100
    python -m experiments.plan --config=configs/instruct.py --methods=full,lora,qlora
    python -m experiments.plan --published

The first forms compile a config's step for other devices, which need not exist here. They read no
data and no weights: a config.json is enough, or a name in `experiments.planning.model_sizes`.
libtpu compiles programs for TPUs (`pip install "lora-jax[tpu]"`). Without libtpu, and for GPUs, the
program is compiled for simulated CPU devices.

For a Llama of any depth, compilation takes libtpu one to two minutes and the CPU's compiler about
ten seconds. The exit code is 2 if the step does not fit the given topology.

With --table, the command estimates what all runs of a table's config cost on one device: for each
cell the steps, the FLOPs and the memory of a step, and the hours, and the hours of all. Sizes come
from published model shapes and data sets (`experiments.planning`), the FLOPs from the traced step,
and the time from a roofline at `--efficiency` of the device's peaks. Rows are as long as the config
allows; `--tokens` takes their mean. It is an estimate: a device reached 0.4 of its peak in
published runs of large models, and reaches less with small ones.

With --methods, it compares the memory of full fine-tuning, LoRA and QLoRA, with a config's own
model and batch: by formula (`experiments.planning.memory_formula`), and that of the arrays and the
compiled training step. With --published, it shows published model sizes, by formula alone. The
batch is one row of --tokens tokens, and each layer is recomputed in the backward pass. Full
fine-tuning is in float32 with float32 moments. LoRA and QLoRA have r=16 on all linear layers, and
weights in bfloat16 or in NF4 with quantised scales.
"""

import sys

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console

from experiments import cli
from experiments.planning import memory_fit
from experiments.planning.memory_formula import published_sizes, side_by_side
from experiments.planning.topologies import (
    ACCELERATORS,
    EFFICIENCY,
    MOST_SIMULATED,
    accelerator,
    prepare,
    topology,
)
from experiments.reports.tables import table_cost
from experiments.setup.config import parse
from experiments.setup.devices import announce
from lora_jax.sharding.mesh import mesh_sizes

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The config that says what to train.", lock_config=True
)
_TABLE = flags.DEFINE_string(
    "table",
    None,
    "In place of --config: estimate the cost of all runs of this config's table. A study of your "
    "own is given by its path or module, as in experiments.tune.",
)
_DEVICE = flags.DEFINE_string(
    "device", None, f"With --table: {', '.join(ACCELERATORS)}, or cpu, which is measured here."
)
_MODEL = flags.DEFINE_string(
    "model", None, "With --table: only this model of the table. The default is all models."
)
_TOKENS = flags.DEFINE_integer(
    "tokens",
    None,
    "With --table: the tokens of a row. The default is the longest that a config allows. With "
    "--published: those of the one row, by default 512.",
    lower_bound=2,
)
_METHODS = flags.DEFINE_list(
    "methods",
    [],
    "Compare the memory of these methods, such as full,lora,qlora: values of the argument `method` "
    "of the config file.",
)
_PUBLISHED = flags.DEFINE_bool(
    "published", False, "Show the memory of published model sizes, by formula."
)
_EFFICIENCY = flags.DEFINE_float(
    "efficiency",
    EFFICIENCY,
    "With --table: the share of the device's peak that training reaches.",
    lower_bound=0.01,
    upper_bound=1.0,
)
_FORMAT = flags.DEFINE_enum("format", "text", table_cost.FORMATS, "With --table: the format.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "The devices, for example v5e:4x4 or h100:8.")
_MESH = flags.DEFINE_list(
    "mesh", ["1", "-1", "1"], "The sizes of data, fsdp and tensor. -1 takes the remaining devices."
)
_ROWS = flags.DEFINE_integer(
    "rows",
    None,
    "How many rows a shard computes at a time. The default is the config's number.",
    lower_bound=1,
)


def plan() -> None:
    if _TABLE.value is not None:
        cost()
        return
    if _PUBLISHED.value:
        published()
        return
    cli.refuse_ignored((_DEVICE, _MODEL, _TOKENS, _EFFICIENCY, _FORMAT), "it goes with --table")
    if _METHODS.value:
        compare()
        return
    for flag, value in (("config", _CONFIG.value), ("topology", _TOPOLOGY.value)):
        if value is None:
            said = str(flags.FLAGS[flag].help)
            raise ValueError(f"--{flag} is missing: {said[0].lower()}{said[1:].rstrip('.')}")
    chosen = topology(str(_TOPOLOGY.value))
    if not chosen.ahead and chosen.devices > MOST_SIMULATED:
        raise ValueError(
            f"--topology={chosen} has {chosen.devices} devices; at most {MOST_SIMULATED} are "
            "simulated"
        )
    mesh = mesh_sizes(cli.integers("mesh", _MESH.value, "1,-1,1"), chosen.devices, "--mesh=")
    prepare(1 if chosen.ahead else chosen.devices)
    console = Console(soft_wrap=True)
    config = parse(_CONFIG.value.to_dict())
    with console.status(f"compiling for {chosen}, which may take minutes"):
        found = memory_fit.fit(config, chosen, mesh, _ROWS.value)
    console.print(memory_fit.show(found))
    if not found.fits:
        sys.exit(2)


def cost() -> None:
    """Print what the runs of a table cost on a device."""
    own = (_TABLE, _DEVICE, _MODEL, _TOKENS, _EFFICIENCY, _FORMAT)
    cli.refuse_all_but(own, "--table has all its runs")
    jax.config.update("jax_platforms", "cpu")  # steps are traced, and the CPU may be measured
    if _DEVICE.value is None:
        raise ValueError(f"--device is missing: one of {', '.join(ACCELERATORS)}, cpu")
    if _DEVICE.value == "cpu":
        announce()  # no other device computes
    device, efficiency = accelerator(_DEVICE.value), float(_EFFICIENCY.value or 0)
    cells = table_cost.table_cost(str(_TABLE.value), _MODEL.value, _TOKENS.value)
    if _FORMAT.value == "csv":
        print(table_cost.table(cells, device, efficiency).to_csv(), end="")
    else:
        without = table_cost.left_out(str(_TABLE.value))
        print(table_cost.text(cells, _DEVICE.value, device, efficiency, without), end="")


def published() -> None:
    """Print the memory of published model sizes, by formula."""
    cli.refuse_all_but((_PUBLISHED, _TOKENS), "--published shows published model sizes")
    console = Console(width=120)
    console.print(published_sizes(_TOKENS.value or 512))
    console.print(
        "By formula; GiB, but cards in GB: 80 GB are 74.5 GiB. Of a layer's activations, only "
        "its input is kept."
    )


def compare() -> None:
    """Print the memory of a config's methods side by side."""
    cli.refuse_all_but((_METHODS, _CONFIG), "--methods compares a step on this machine")
    given = flags.FLAGS["config"]
    if _CONFIG.value is None:
        raise ValueError("--methods needs --config, a config file that has an argument `method`")
    if changed := list(config_flags.get_override_values(given)):
        raise ValueError(f"--config.{changed[0]} would be ignored: --methods compares the defaults")
    announce()
    console = Console(width=120)
    config = config_flags.get_config_filename(given)
    console.print(side_by_side(config, list(_METHODS.value)))
    console.print(
        "MiB. Temporaries are those beside the gradients; compiled ones as XLA assigns its buffers."
    )


if __name__ == "__main__":
    cli.main(plan)
