"""All methods with one budget, on CoLA or 2,000 sentences of SST-2; a run takes minutes on 2 cores.

    python -m experiments.tune --study=all_methods --workdir=runs/all_methods/cola \
        --argument=task=cola,source=tsv,folder=glue_data
    python -m experiments.table --table=all_methods --results=runs/all_methods

Each method tries the same number of learning rates. Each rate is trained once and scored on 500
held-out training sentences. The best rate is then trained with three seeds; only these runs are
scored on the development set, once, at the end of their two epochs. Everything else is equal: rank
8 and alpha 16 on all six linears (VeRA: rank 256; AdaLoRA: from 12 to a mean of 8), batches of 32,
AdamW, a linear decay after a warm-up of 6%. The 2,000 sentences of SST-2 are the same for all.

`--rows=lora,dora_nf4,my_package.my_variant` runs other methods: any variant, with the storage of
its base after it. The rates, the size and the targets of a method are those that its file suggests.

all-MiniLM-L6-v2 is small and made for similarity, so no number can be compared with a paper's.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks

ROWS = (
    "head_only",
    "bitfit",
    "full",
    "lora",
    "rslora",
    "lora_plus",
    "dora",
    "adalora",
    "pissa",
    "vera",
    "lora_nf4",
)
"""What the study compares unless `--rows` names others."""
STUDY = {"rows": ROWS, "held_out": 500, "tuning_seed": 100, "seeds": (0, 1, 2)}
TRAIN = {"cola": 0, "sst2": 2000}
"""The number of training sentences; 0 for all."""

ARGUMENTS = common_tasks.arguments(task=tuple(TRAIN), row="lora", model=("minilm",))
TABLE = common_tasks.table(
    "All methods, one budget",
    tasks=tuple(TRAIN),
    average=False,
    spread="ci95",
    rows=dict.fromkeys(ROWS, ""),
    models=("minilm",),
)


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    name, storage = common_tasks.stored(choice["row"])
    config = common_tasks.experiment(
        "all_methods",
        choice,
        common_tasks.laptop(rate="tried", epochs=2),
        variant=common.variant(name),
        storage=storage,
    )
    if choice["size"] != "smoke":  # sentences are short and of similar length
        config.update({"data": {"train": TRAIN[choice["task"]], "buckets": 3}})
    return config
