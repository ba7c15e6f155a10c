"""All methods with one budget, on CoLA or 2,000 sentences of SST-2; a run takes minutes on 2 cores.

    python -m experiments.tune --study=all_methods --workdir=runs/all_methods/cola \
        --argument=task=cola,source=tsv,folder=glue_data
    python -m experiments.table --table=all_methods --results=runs/all_methods

Each method tries the same number of learning rates. Each rate is trained once and scored on 500
held-out training sentences. The best rate is then trained with three seeds; only these runs are
scored on the development set, once, at the end of their two epochs. Everything else is equal: rank
8 and alpha 16 on all six linears (VeRA: rank 256; AdaLoRA: from 12 to a mean of 8), batches of 32,
AdamW, a linear decay after a warm-up of 6%. The 2,000 sentences of SST-2 are the same for all.

all-MiniLM-L6-v2 is small and made for similarity, so no number can be compared with a paper's.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks

ROWS = {
    "head_only": "head alone",
    "bitfit": "BitFit",
    "full": "full fine-tuning",
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "lora_plus": "LoRA+",
    "dora": "DoRA",
    "adalora": "AdaLoRA",
    "pissa": "PiSSA",
    "vera": "VeRA",
    "lora_nf4": "LoRA on NF4",
}
_USUAL = (3e-4, 1e-3, 3e-3)
RATES = dict.fromkeys(ROWS, _USUAL) | {
    "head_only": (3e-3, 1e-2, 3e-2),
    "bitfit": (1e-3, 3e-3, 1e-2),
    "full": (3e-5, 1e-4, 3e-4),
    "pissa": (1e-4, 3e-4, 1e-3),
    "vera": (3e-3, 1e-2, 3e-2),
}
STUDY = {"rates": RATES, "held_out": 500, "tuning_seed": 100, "seeds": (0, 1, 2)}
TRAIN = {"cola": 0, "sst2": 2000}
"""The number of training sentences; 0 for all."""

ARGUMENTS = common_tasks.arguments(task=tuple(TRAIN), row=tuple(ROWS), model=("minilm",))
TABLE = common_tasks.table(
    "All methods, one budget",
    tasks=tuple(TRAIN),
    average=False,
    spread="ci95",
    rows=ROWS,
    models=("minilm",),
)


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    row, smoke = choice["row"], choice["size"] == "smoke"
    name, storage = ("lora", "nf4") if row == "lora_nf4" else (row, "none")
    own = {"rank": 256} if name == "vera" else {}
    settings = {**common_tasks.variant_settings(name, choice["size"]), **own}
    config = common_tasks.experiment(
        "all_methods",
        choice,
        common_tasks.laptop(name, learning_rate=RATES[row][1], epochs=2),
        row=row,
        variant=common.variant(name, **settings),
        targets=common_tasks.SIX_LINEARS,
        storage=storage,
    )
    if not smoke:  # sentences are short and of similar length
        config.update({"data": {"train": TRAIN[choice["task"]], "buckets": 3}})
    return config
