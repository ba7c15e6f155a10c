"""AdaLoRA, Table 1: GLUE with DeBERTa-v3 base (arXiv 2303.10512v2).

    C=configs/adalora_table1.py:model=deberta_v3_base
    python -m experiments.train --config=$C,method=adalora_b576,task=cola,seed=0 \
        --workdir=runs/adalora_table1/b576/cola/0
    python -m experiments.table --table=adalora_table1 --results=runs/adalora_table1

`adalora_b144` and `adalora_b576` end with a mean rank of 2 and 8 in the 72 matrices; compare them
with `lora_r2` and `lora_r8`. `:model=minilm` runs on a laptop; its numbers cannot be compared with
the paper's. Expected, the mean of five seeds (MNLI matched and mismatched, QQP accuracy and F1;
STS-B is the mean of Pearson's and Spearman's correlation):

    adalora_b576  MNLI 90.76/90.79  SST-2 96.10  CoLA 71.45  QQP 92.23/89.74  QNLI 94.55  RTE 88.09
                  MRPC 90.69  STS-B 91.84  average 89.31
    adalora_b144  MNLI 90.66/90.70  SST-2 95.80  CoLA 70.04  QQP 91.78/89.16  QNLI 94.49  RTE 87.36
                  MRPC 90.44  STS-B 91.63  average 88.86
    lora_r8       MNLI 90.65/90.69  SST-2 94.95  CoLA 69.82  QQP 91.99/89.38  QNLI 93.87  RTE 85.20
                  MRPC 89.95  STS-B 91.60  average 88.34
    lora_r2       MNLI 90.30/90.38  SST-2 94.95  CoLA 68.71  QQP 91.61/88.91  QNLI 94.03  RTE 85.56
                  MRPC 89.71  STS-B 91.68  average 88.15
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, common_tasks

# From the paper's Table 8: learning rate, epochs, gamma, t_i, Delta_T, t_f. From the scripts, as
# the paper does not give them: longest input, alpha, steps of warm-up (0: a ratio of 0.1), the
# head's dropout, weight decay. If the two disagree, the paper is followed: the scripts are for a
# target rank of 1, which is not in the table (they have: CoLA 8e-4 and gamma 0.1, QNLI 5e-4, QQP
# 8e-4, STS-B gamma 0.3). Batches have 32 examples.
# fmt: off
DEBERTA_V3_BASE = {
    "mnli": (5e-4,   7,  0.1, 8000, 100, 50000, 256, 16.0, 1000, 0.15, 0.0),
    "sst2": (8e-4,   24, 0.1, 6000, 100, 22000, 128, 16.0, 1000, 0.0,  0.01),
    "cola": (5e-4,   25, 0.5, 800,  10,  3500,  64,  32.0, 100,  0.1,  0.0),
    "qqp":  (5e-4,   5,  0.1, 8000, 100, 25000, 320, 16.0, 2000, 0.15, 0.01),
    "qnli": (1.2e-3, 5,  0.1, 2000, 100, 8000,  512, 32.0, 500,  0.1,  0.01),
    "rte":  (1.2e-3, 50, 0.3, 600,  1,   1800,  320, 32.0, 200,  0.2,  0.01),
    "mrpc": (1e-3,   30, 0.1, 600,  1,   1800,  320, 32.0, 0,    0.0,  0.01),
    "stsb": (2.2e-3, 25, 0.1, 800,  10,  2000,  128, 32.0, 100,  0.2,  0.1),
}
# fmt: on
KEYS = (
    "learning_rate",
    "epochs",
    "orthogonality",
    "t_init",
    "delta_t",
    "t_final",
    "max_length",
    "alpha",
    "warmup_steps",
    "head_dropout",
    "weight_decay",
)
BUDGET = ("orthogonality", "t_init", "delta_t", "t_final")
# First and last mean rank (Table 7). The learning rates of the LoRA rows are not published: our
# choice is to use AdaLoRA's learning rates, epochs and alpha for them.
ROWS: dict[str, dict[str, Any]] = {
    "lora_r2": {"rank": 2},
    "lora_r8": {"rank": 8},
    "adalora_b144": {"rank": 4, "target_rank": 2},
    "adalora_b576": {"rank": 12, "target_rank": 8},
}

ARGUMENTS = common_tasks.arguments(
    model=("minilm", "deberta_v3_base"),
    method=("adalora_b576", "adalora_b144", "lora_r8", "lora_r2"),
    task=tuple(DEBERTA_V3_BASE),
)
TABLE = common_tasks.table(
    "AdaLoRA, Table 1: GLUE",
    tuple(DEBERTA_V3_BASE),
    {
        "mnli": ("accuracy", "accuracy_mismatched"),
        "qqp": ("accuracy", "f1"),
        "stsb": ("pearson_spearman",),
    },
    published=("AdaLoRA", "Table 1"),
    rows={
        "lora_r8": "LoRA, r=8",
        "adalora_b576": "AdaLoRA, mean rank 8",
        "lora_r2": "LoRA, r=2",
        "adalora_b144": "AdaLoRA, mean rank 2",
    },
    seeds=5,
    choose="best",
    decimals=2,
    notes=("AdaLoRA's trained parameters are those of the final budget.",),
)


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    method = choice["method"]
    name = method.partition("_")[0]
    settings = {"alpha": 16.0, **ROWS[method]}
    if choice["model"] == "minilm":
        recipe = common_tasks.laptop(select="best")
        budget = {"orthogonality": 0.1, "delta_t": 10}  # t_init, t_final: the defaults
    else:
        recipe = dict(zip(KEYS, DEBERTA_V3_BASE[choice["task"]], strict=True))
        budget = {key: recipe.pop(key) for key in BUDGET}
        recipe |= {"batch_size": 32, "warmup_ratio": 0.1}
        settings["alpha"] = recipe.pop("alpha")
    if choice["size"] == "smoke":
        budget |= {"t_init": 1, "t_final": 1, "delta_t": 1}
    if name == "adalora":  # gamma is for the code's penalty, not for the paper's sum of squares
        settings |= {"mode": "reference", **budget}
    return common_tasks.experiment(
        "adalora_table1",
        choice,
        recipe,
        row=method,
        variant=common.variant(name, **settings),
        targets=common_tasks.SIX_LINEARS,
    )
