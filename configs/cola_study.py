"""All methods on CoLA with one budget: all-MiniLM-L6-v2, minutes a run on two CPU cores.

    python -m experiments.tune --study=cola_study --argument=source=tsv,folder=glue_data \
        --workdir=runs/cola_study
    python -m experiments.table --table=cola_study --results=runs/cola_study

Each method tries the same number of learning rates, each trained once and scored on 500 training
sentences that are held out for it; the best goes on to train on all of them with three seeds, and
only those are scored on the development set, at the end of their two epochs. Everything else is
equal: rank 8 and alpha 16 on all six linears (VeRA: rank 256; AdaLoRA: from 12 to a mean of 8),
batches of 32, AdamW, a linear decay after a warm-up of 6%.

all-MiniLM-L6-v2 is small and made for similarity, so no number here stands beside a paper's.
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

ARGUMENTS = common_tasks.arguments(row=tuple(ROWS), model=("minilm",))
TABLE = common_tasks.table(
    "CoLA, all-MiniLM-L6-v2", tasks=("cola",), average=False, spread="ci95", rows=ROWS
)


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    row = choice["row"]
    name, storage = ("lora", "nf4") if row == "lora_nf4" else (row, "none")
    own = {"rank": 256} if name == "vera" else {}
    settings = {**common_tasks.variant_settings(name, choice["size"]), **own}
    config = common_tasks.experiment(
        "cola_study",
        {**choice, "task": "cola"},
        common_tasks.laptop(name, learning_rate=RATES[row][1], epochs=2),
        row=row,
        variant=common.variant(name, **settings),
        targets=common_tasks.SIX_LINEARS,
        storage=storage,
    )
    config.update({"data": {"buckets": 3}})  # CoLA's sentences are short and alike
    return config
