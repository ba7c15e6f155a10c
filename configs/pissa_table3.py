"""PiSSA, Table 3: GLUE with DeBERTa-v3 base, PiSSA against LoRA (arXiv 2404.02948).

    C=configs/pissa_table3.py:model=deberta_v3_base
    python -m experiments.train --config=$C,method=pissa,task=cola,seed=0 \
        --workdir=runs/pissa_table3/pissa/cola/0
    python -m experiments.table --table=pissa_table3 --results=runs/pissa_table3

The two rows also differ in epochs, batches and learning rates. `:model=minilm` runs on a laptop;
its numbers cannot be compared with the paper's. Expected, the mean of three seeds (the average uses
only MNLI matched and QQP's accuracy, unlike that of AdaLoRA's Table 1):

    pissa  MNLI 90.37  SST-2 96.22  MRPC 91.50  CoLA 73.12  QNLI 94.43  QQP 92.33  RTE 88.69
           STS-B 92.00  average 89.83
    lora   MNLI 89.96  SST-2 95.64  MRPC 90.28  CoLA 70.69  QNLI 93.84  QQP 92.03  RTE 84.84
           STS-B 91.68  average 88.62
"""

from ml_collections import ConfigDict

from configs import common, common_tasks

# Epochs, batch, learning rate, alpha: from the paper's Table 10. Rank 8 in all six linears, which
# gives the table's 1.33 M. Longest inputs are not published: AdaLoRA's are used. Warm-up and weight
# decay are not published either: none is used.
# fmt: off
PISSA = {
    "mnli": (5,  16, 5e-4, 8.0),
    "sst2": (20, 16, 3e-5, 8.0),
    "mrpc": (20, 32, 2e-4, 8.0),
    "cola": (20, 16, 1e-4, 8.0),
    "qnli": (10, 32, 1e-4, 16.0),
    "qqp":  (10, 16, 1e-4, 8.0),
    "rte":  (50, 16, 1e-4, 8.0),
    "stsb": (20, 8,  3e-4, 8.0),
}
LORA = {
    "mnli": (10, 32, 3e-4, 8.0),
    "sst2": (10, 32, 1e-4, 8.0),
    "mrpc": (10, 32, 4e-4, 8.0),
    "cola": (30, 32, 4e-4, 8.0),
    "qnli": (25, 32, 3e-4, 8.0),
    "qqp":  (10, 16, 3e-4, 8.0),
    "rte":  (50, 32, 4e-4, 8.0),
    "stsb": (30, 16, 4e-4, 8.0),
}
LENGTHS = {"mnli": 256, "sst2": 128, "mrpc": 320, "cola": 64, "qnli": 512, "qqp": 320, "rte": 320,
           "stsb": 128}
# fmt: on
KEYS = ("epochs", "batch_size", "learning_rate")

ARGUMENTS = common_tasks.arguments(
    model=("minilm", "deberta_v3_base"), method=("pissa", "lora"), task=tuple(PISSA)
)
TABLE = common_tasks.table(
    "PiSSA, Table 3: GLUE",
    tuple(PISSA),
    {"stsb": ("pearson_spearman",)},
    published=("PiSSA", "Table 3"),
    rows={"lora": "LoRA", "pissa": "PiSSA"},
    choose="best",
    decimals=2,
)


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    method, task = choice["method"], choice["task"]
    *values, alpha = (PISSA if method == "pissa" else LORA)[task]
    if choice["model"] == "minilm":
        recipe, alpha = common_tasks.laptop(select="best"), 8.0
    else:
        shared = {"max_length": LENGTHS[task], "warmup_ratio": 0.0, "weight_decay": 0.0}
        recipe = {**shared, **dict(zip(KEYS, values, strict=True))}
    return common_tasks.experiment(
        "pissa_table3",
        choice,
        recipe,
        row=method,
        variant=common.variant(method, rank=8, alpha=alpha),
        targets=common_tasks.SIX_LINEARS,
    )
