"""QLoRA, Table 3: LoRA on weights in full precision, in NF4, and in NF4 with double quantisation.

    C=configs/qlora_table3.py:model=roberta_large
    python -m experiments.train --config=$C,method=lora_nf4_double,task=rte,seed=0 \
        --workdir=runs/qlora_table3/nf4_double/rte/0
    python -m experiments.table --table=qlora_table3 --results=runs/qlora_table3

arXiv 2305.14314. Its only numbers for an encoder are means over GLUE with RoBERTa large: 88.8 for
LoRA in BF16, 88.8 in Int8, 88.6 in FP4. NF4 with double quantisation has no number there. The paper
does not say how the mean is computed, so it has its own column. `:model=minilm` runs on a laptop;
its numbers cannot be compared with the paper's.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks, lora_table2

STORAGES = {
    "lora": "none",
    "lora_int8": "int8",
    "lora_nf4": "nf4",
    "lora_nf4_double": "nf4_double",
}
# The appendix with the settings for RoBERTa was not available. Learning rates, batches and epochs
# are those of LoRA's Table 2 in the set-up without MNLI; adapters are in all linear layers, as in
# QLoRA. The paper computes in BF16.
ARGUMENTS = common_tasks.arguments(
    model=("minilm", "roberta_large"), method=tuple(STORAGES), task=common_tasks.GLUE
)
TABLE = common_tasks.table(
    "QLoRA, Table 3: GLUE by the storage of frozen weights",
    common_tasks.GLUE,
    published=("QLoRA", "Table 3"),
    rows={
        "lora": "LoRA, not quantised",
        "lora_int8": "LoRA, Int8",
        "lora_nf4": "LoRA, NF4",
        "lora_nf4_double": "LoRA, NF4 + DQ",
    },
    choose="best",
)


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    if choice["model"] == "minilm":
        recipe = common_tasks.laptop(select="best")
    else:
        recipe = lora_table2.recipe("roberta_large", "lora_dagger", choice["task"])
        recipe["dtype"] = "bfloat16"
    return common_tasks.experiment(
        "qlora_table3",
        choice,
        recipe,
        row=choice["method"],
        variant=common.variant("lora", rank=8, alpha=16.0),
        targets=common_tasks.SIX_LINEARS,
        storage=STORAGES[choice["method"]],
    )
