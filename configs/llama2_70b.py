"""Llama 2 70B learns to follow instructions, on a pod: does it fit, and how is it trained?

    python -m experiments.plan --config=configs/llama2_70b.py --topology=v5e:4x4 --mesh=1,4,4
    python -m experiments.plan --config=configs/llama2_70b.py:method=qlora --topology=v6e:2x4
    C=configs/llama2_70b.py:folder=alpaca
    python -m experiments.train --config=$C --mesh=1,4,4 --workdir=runs/70b

The first two commands need neither the machine nor the weights. The third runs on the machine and
reads the weights shard by shard. Access to them must be requested from Meta; or name a folder with
`--config.model.name=`. `:model=llama_2_7b`, or another of `configs.common_texts.MODELS`, uses other
weights. `method` is lora, dora, qlora (NF4, its scales quantised too), full, or any other variant.
Instructions come from `folder`'s alpaca_data.json, or from `file`, in Alpaca's format.

Nobody has run this to the end, here or elsewhere: only the program is checked (see the plan). The
learning rate of adapters is QLoRA's for 65B and 33B (Dettmers et al. 2023, arXiv:2305.14314, Table
9); that of full fine-tuning is untuned.
"""

from ml_collections import ConfigDict

from configs import common, common_texts

METHODS = {
    "lora": ("lora", {"rank": 16, "alpha": 16.0}, "none", 1e-4),
    "dora": ("dora", {"rank": 16, "alpha": 16.0}, "none", 1e-4),
    "qlora": ("lora", {"rank": 16, "alpha": 16.0}, "nf4_double", 1e-4),
    "full": ("full", {}, "none", 1e-5),
}
ARGUMENTS = common_texts.arguments(
    model=("llama_2_70b", *(name for name in common_texts.MODELS if name != "llama_2_70b")),
    method="lora",
    tokens=2048,
    file="",
)
RECIPE = {
    "batch_size": 4,
    "epochs": 1,
    "schedule": "cosine",
    "warmup_ratio": 0.03,
    "clip": 0.3,
    "dtype": "bfloat16",
    "remat": "layers",
    "validation": 200,
}


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    method = choice["method"]
    variant, settings, storage, rate = METHODS.get(method, (method, {}, "none", None))
    return common_texts.experiment(
        "llama2_70b",
        choice,
        {**RECIPE, "learning_rate": rate, "max_length": choice["tokens"]},
        row=method,
        column="alpaca",
        variant=common.variant(variant, **settings),
        task="alpaca",
        source="alpaca",
        file=choice["file"],
        storage=storage,
        generate={"samples": 0},  # samples would need another copy of the trained parameters
    )
