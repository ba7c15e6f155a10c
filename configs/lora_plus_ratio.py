"""LoRA+, the grid of its figures: the learning rate of A, and how many times B's is larger.

    C=configs/lora_plus_ratio.py:model=roberta_base
    python -m experiments.train --config=$C,task=mnli,rate=2e-4,ratio=4,seed=0 \
        --workdir=runs/lora_plus_ratio/mnli/2e-4_4/0
    python -m experiments.plot --kind=learning_rate --results=runs/lora_plus_ratio --out=rates.png

arXiv 2402.12354. Its results are pictures, so there are no cells to be compared with. What it says:
with A random and B zero, as here, the best ratios on RoBERTa are 4 to 8 (16 is for the opposite
start, A at zero), and up to twice fewer steps to an accuracy on MNLI. `:model=minilm` is a scale
for a laptop, whose numbers are its own.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks

# Epochs, appendix C.1; of all: batch 32, length 128, Adam's b2 0.99, linear without a warm-up, rank
# and alpha 8. The paper gives no weight decay, so none is taken; its code has a dropout of 0.1 in
# the adapters, which the paper does not name.
EPOCHS = {"mnli": 3, "qqp": 3, "qnli": 3, "sst2": 10}
SHARED = {
    "batch_size": 32,
    "max_length": 128,
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "b2": 0.99,
}
# The ends of both grids, 1e-5 to 8e-4 for A and 1e-4 to 4e-3 for B, are appendix C.1's, which
# prints one in the place of the other; the steps between are ours. The last two are for minilm.
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
        recipe = common_tasks.laptop("lora_plus", learning_rate=float(choice["rate"]))
    return common_tasks.experiment(
        "lora_plus_ratio",
        choice,
        recipe,
        row=f"rate_{choice['rate']}_ratio_{choice['ratio']}",
        variant=common.variant(
            "lora_plus", rank=8, alpha=8.0, learning_rate_ratio=float(choice["ratio"])
        ),
        targets=common_tasks.QUERY_VALUE,
        # As the authors' code: the dense layer of RoBERTa's head stays as it was drawn.
        also_train=("classifier/.*",),
    )
