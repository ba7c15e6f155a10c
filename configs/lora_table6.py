"""LoRA, Table 6: which attention matrices to adapt, and with which rank, on an encoder.

    python -m experiments.train --config=configs/lora_table6.py:targets=qv,rank=4,task=cola,seed=0 \
        --workdir=runs/lora_table6/qv4/0
    python -m experiments.table --table=lora_table6 --results=runs/lora_table6

The paper's own table (arXiv 2106.09685v2) is for GPT-3 on WikiSQL and MNLI. Its numbers are shown
as published, never beside an encoder's. The table has the whole grid for RoBERTa base, on the tasks
that were run or else on CoLA; "not run" marks missing results. The paper found that q and v with
rank 4 (73.7 and 91.3) do no worse than with rank 64 (73.5 and 91.4), and better than q alone with
any rank (70.5 and 91.1 at most). Settings are those of LoRA's Table 2 for the task, with alpha 8
for every rank (section 4.1: alpha is set to the first rank tried, and not tuned).
"""

from ml_collections import ConfigDict

from configs import common, common_tasks, lora_table2

TARGETS = {
    "qv": "(query|value)/kernel",
    "q": "query/kernel",
    "qkvo": "attention/(query|key|value|output)/kernel",
}
WEIGHTS = {"q": "Wq", "qv": "Wq,Wv", "qkvo": "Wq,Wk,Wv,Wo"}
"""The targets in the paper's notation and order."""
RANKS = (8, 1, 2, 4, 64)
ARGUMENTS = common_tasks.arguments(
    model=("minilm", "roberta_base"),
    task=("cola", *(task for task in common_tasks.GLUE if task != "cola")),
    targets=tuple(TARGETS),
    rank=RANKS,
)
TABLE = common_tasks.table(
    "LoRA, Table 6: matrices and ranks",
    published=("LoRA", "Table 6"),
    rows={
        f"{targets}_r{rank}": f"LoRA, {weights}, r={rank}"
        for targets, weights in WEIGHTS.items()
        for rank in sorted(RANKS)
    },
    models=("roberta_base",),
    unrun=(common_tasks.column("cola"),),
    choose="best",
    notes=("The published rows are GPT-3's; ours are an encoder's, with settings of its own.",),
)


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    return common_tasks.experiment(
        "lora_table6",
        choice,
        lora_table2.recipe(choice["model"], "lora", choice["task"]),
        row=f"{choice['targets']}_r{choice['rank']}",
        variant=common.variant("lora", rank=choice["rank"], alpha=8.0),
        targets=(TARGETS[choice["targets"]],),
    )
