r"""What rank, targets, warm-up, dropout and weight decay does LoRA want, each with its rate tuned?

    python -m experiments.tune --study=lora_settings --workdir=runs/lora_settings \
        --argument=source=tsv,folder=glue_data
    python -m experiments.report --results=runs/lora_settings --format=html --out=settings.html

Each row changes one thing of `lora`, which is that of `against_lora`: rank 8 and alpha 16 on all
six linears of every layer, a warm-up of 6%, no dropout, and a weight decay of 0.01. With the rank
goes alpha, so that the scale, alpha / r, stays 2. All take as many steps of as many sentences. The
report has a figure for each question, and one of scores by learning rate. Six seeds are what the
time and the size of the records allow for twelve rows.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks, targets
from configs.studies import against_lora

COLUMNS = ("sst2", "stsb")
LAYERS = common_tasks.LAYERS["minilm"]
CHANGES = {
    "lora": {},
    **{f"rank_{r}": {"variant": {"rank": r, "alpha": 2.0 * r}} for r in (4, 16, 64)},
    "query_value": {"targets": targets.patterns("qv", LAYERS)},
    "attention": {"targets": targets.patterns("qkvo", LAYERS)},
    "last_half": {"targets": targets.patterns("all_last_half", LAYERS)},
    "every_other": {"targets": targets.patterns("all_every_other", LAYERS)},
    "warmup_0": {"optimizer": {"warmup_ratio": 0.0}},
    "dropout_10": {"variant": {"dropout": 0.1}},
    "decay_0": {"optimizer": {"weight_decay": 0.0}},
    "decay_10": {"optimizer": {"weight_decay": 0.1}},
}
"""What is changed, by row."""
QUESTIONS = {
    "Rank": {"rank_4": "4", "lora": "8", "rank_16": "16", "rank_64": "64"},
    "Targets": {
        "query_value": "query, value",
        "attention": "attention",
        "lora": "all linears",
        "last_half": "last half of layers",
        "every_other": "every other layer",
    },
    "Warm-up": {"warmup_0": "none", "lora": "6%"},
    "Dropout": {"lora": "none", "dropout_10": "10%"},
    "Weight decay": {"decay_0": "none", "lora": "0.01", "decay_10": "0.1"},
}
"""What is asked, and what each row that answers it is called there."""
STUDY = {
    **against_lora.STUDY,
    "rows": tuple(CHANGES),
    "columns": COLUMNS,
    "seeds": tuple(range(6)),
    "claims": (),
}
ARGUMENTS = common_tasks.arguments(task=COLUMNS, row=tuple(CHANGES), model=("minilm",))
TABLE = common_tasks.table(
    "LoRA's settings",
    tasks=COLUMNS,
    spread="ci95",
    seeds=len(STUDY["seeds"]),
    rows={
        row: "" if row == "lora" else f"{question} {name}"
        for question, rows in QUESTIONS.items()
        for row, name in rows.items()
    },
    models=("minilm",),
    questions=QUESTIONS,
)


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    config = against_lora.config_of({**choice, "row": "lora"})
    config.update({"experiment": "lora_settings", "variant": {"rank": 8, "alpha": 16.0}})
    config.update({"study": {"table": "lora_settings", "row": choice["row"]}})
    if choice["size"] != "smoke":
        config.update({"train": {"log_every": 50}})
    config.update(CHANGES[choice["row"]])
    return config
