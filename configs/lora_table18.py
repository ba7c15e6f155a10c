"""LoRA, Table 18: only the rank varies, from 1 up, on an encoder.

    python -m experiments.train --config=configs/lora_table18.py:rank=2,task=cola,seed=0 \
        --workdir=runs/lora_table18/2/0
    python -m experiments.table --table=lora_table18 --results=runs/lora_table18

The paper's own table (arXiv 2106.09685v2) is for GPT-2 medium on E2E, with ranks to 1024. Its
numbers are shown as published, never beside an encoder's. The table has every rank for RoBERTa
base, on the tasks that were run or else on CoLA; "not run" marks missing results. The paper found
that validation loss stops falling at rank 16 (1.16), and that BLEU is best at rank 4 (70.38; 68.72
at 1, 69.37 at 1024). Settings are those of LoRA's Table 2 for the task, with alpha 8 for every
rank. Ranks end at 256, because the hidden size of all-MiniLM-L6-v2 is 384.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks, lora_table2

RANKS = (4, 1, 2, 8, 16, 32, 64, 128, 256)
ARGUMENTS = common_tasks.arguments(
    model=("minilm", "roberta_base"),
    task=("cola", *(task for task in common_tasks.GLUE if task != "cola")),
    rank=RANKS,
)
TABLE = common_tasks.table(
    "LoRA, Table 18: ranks",
    published=("LoRA", "Table 18"),
    rows={f"r{rank}": f"LoRA, r={rank}" for rank in sorted(RANKS)},
    models=("roberta_base",),
    unrun=(common_tasks.column("cola"),),
    choose="best",
    notes=("The published rows are GPT-2 medium's; ours are an encoder's.",),
)


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    return common_tasks.experiment(
        "lora_table18",
        choice,
        lora_table2.recipe(choice["model"], "lora", choice["task"]),
        row=f"r{choice['rank']}",
        variant=common.variant("lora", rank=choice["rank"], alpha=8.0),
        targets=common_tasks.QUERY_VALUE,
    )
