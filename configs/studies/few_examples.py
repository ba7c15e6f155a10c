r"""With few examples, does LoRA do as well as full fine-tuning, BitFit, or a head alone?

    for examples in 32 128 512; do
        python -m experiments.tune --study=few_examples --workdir=runs/few_examples/$examples \
            --columns=sst2_$examples,stsb_$examples --argument=source=tsv,folder=glue_data
    done

Methods, batches and rates are those of `against_lora`. Each number of examples is a study of its
own, because a mean over them could hide a gain with few and a loss with many. Each rate is chosen
on 1,000 held-out sentences: who has only 32 has no such choice, so scores are of well chosen rates.
Each run takes STEPS steps. PILOTS says how that was settled, before the first run of the study. Six
seeds are what the time and the size of the records allow.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks
from configs.studies import against_lora

EXAMPLES = (32, 128, 512)
TASKS = ("sst2", "stsb")
STEPS = 300
PILOTS = (
    "One seed (100), the middle rate of each method, 1,000 held-out training sentences. Each "
    "number is a score in points after 100 and 300 steps.",
    "SST-2: LoRA 67.3, 70.3 with 32 sentences, 76.6, 76.2 with 128, 82.8, 82.3 with 512; full "
    "72.7, 72.1 with 32, 79.8, 79.3 with 128, 82.7 (100) with 512.",
    "STS-B: LoRA 18.6, 20.0 with 32 pairs, 62.7, 49.5 with 128, 69.5, 78.2 with 512; full 22.3, "
    "24.6 with 32, 60.1, 59.9 with 128, 75.6, 79.4 with 512.",
    "With 512 pairs, both need 300 steps. Elsewhere 300 change a score by 3 points at most, but "
    "for LoRA with 128 pairs, which loses 13 at its middle rate. So 300 steps for all.",
)
"""What was tried before the first run of the study, and what followed from it."""
COLUMNS = tuple(f"{task}_{examples}" for examples in EXAMPLES for task in TASKS)
ROWS = ("lora", "full", "bitfit", "head_only")
STUDY = {
    **against_lora.STUDY,
    "rows": ROWS,
    "columns": COLUMNS[: len(TASKS)],
    "seeds": tuple(range(6)),
    "claims": ("With so many examples, full fine-tuning is not better than LoRA.",),
    "pilots": PILOTS,
}
ARGUMENTS = common_tasks.arguments(task=COLUMNS, row=ROWS, model=("minilm",))
TABLE = common_tasks.table(
    "Few examples, with tuned rates",
    average=False,
    spread="ci95",
    seeds=len(STUDY["seeds"]),
    rows=dict.fromkeys(ROWS, ""),
    models=("minilm",),
    checks=({"not_better": ("full",)},),
    columns=tuple(
        (f"{common_tasks.TITLES[task]} with {examples}", f"{task}_{examples}", metric)
        for task in TASKS
        for examples in EXAMPLES
        for metric in [common_tasks.METRICS.get(task, "accuracy")]
    ),
)


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    task, _, examples = choice["task"].rpartition("_")
    config = against_lora.config_of({**choice, "task": task})
    config.update({"experiment": "few_examples"})
    config.update({"study": {"table": "few_examples", "column": choice["task"]}})
    if choice["size"] != "smoke":
        epochs = -(-STEPS * 16 // int(examples))
        train = {"max_steps": STEPS, "epochs": epochs, "log_every": 50}
        config.update({"data": {"train": int(examples)}, "train": train})
    return config
