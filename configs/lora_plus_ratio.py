"""LoRA+, the grid of its figures: A's learning rate, and the ratio of B's rate to it.

    C=configs/lora_plus_ratio.py:model=roberta_base
    python -m experiments.train --config=$C,task=mnli,rate=2e-4,ratio=4,seed=0 \
        --workdir=runs/lora_plus_ratio/mnli/2e-4_4/0
    python -m experiments.plot --kind=learning_rate --results=runs/lora_plus_ratio --out=rates.png

arXiv 2402.12354. Its results are figures, so there are no numbers to compare with. It says: if A
starts random and B zero, as here, the best ratios on RoBERTa are 4 to 8 (16 is for the opposite
start, with A zero), and LoRA+ reaches an accuracy on MNLI in as few as half the steps.
`:model=minilm` runs on a laptop; its numbers cannot be compared with the paper's.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks

# From appendix C.1: epochs, and for all tasks: batch 32, length 128, Adam's b2 0.99, linear without
# a warm-up, rank and alpha 8. The paper gives no weight decay, so none is used. Its code has a
# dropout of 0.1 in the adapters, which the paper does not mention.
EPOCHS = {"mnli": 3, "qqp": 3, "qnli": 3, "sst2": 10}
SHARED = {
    "batch_size": 32,
    "max_length": 128,
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "b2": 0.99,
}
# The ends of both grids, 1e-5 to 8e-4 for A and 1e-4 to 4e-3 for B, are from appendix C.1, which
# prints them swapped; the steps between are ours. The last two are for minilm.
RATES = ("1e-4", "1e-5", "2e-5", "5e-5", "2e-4", "4e-4", "8e-4", "2e-3", "4e-3")
RATIOS = (4, 1, 2, 8, 16, 32, 64)

ARGUMENTS = common_tasks.arguments(
    model=("minilm", "roberta_base"), task=tuple(EPOCHS), rate=RATES, ratio=RATIOS
)
TABLE = common_tasks.table(
    "LoRA+: learning rates of A by ratios",
    tuple(EPOCHS),
    average=False,
    choose="best",
)


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    task = choice["task"]
    recipe = {**SHARED, "epochs": EPOCHS[task], "learning_rate": float(choice["rate"])}
    if choice["model"] == "minilm":
        recipe = common_tasks.laptop(learning_rate=float(choice["rate"]))
    return common_tasks.experiment(
        "lora_plus_ratio",
        choice,
        recipe,
        row=f"rate_{choice['rate']}_ratio_{choice['ratio']}",
        variant=common.variant(
            "lora_plus", rank=8, alpha=8.0, learning_rate_ratio=float(choice["ratio"])
        ),
        targets=common_tasks.QUERY_VALUE,
        # As in the authors' code, the dense layer of RoBERTa's head stays at its random start.
        also_train=("classifier/.*",),
    )
