r"""Which methods differ from LoRA on five GLUE tasks, once each has its best learning rate?

    python -m experiments.tune --study=against_lora --workdir=runs/against_lora \
        --argument=source=tsv,folder=glue_data

all-MiniLM-L6-v2 learns from the same number of sentences of each task, for the same number of
epochs. Each seed draws sentences of its own, so that results are of new training sets, too; all
methods of a seed have the same sentences in the same order and begin with the same head. Rank 8 and
alpha 16 on all six linears (VeRA: rank 256; AdaLoRA: from 12 to a mean of 8), batches of 16, AdamW,
a linear decay after a warm-up of 6%.

Each method tries five learning rates, half a decade apart, on held-out training sentences, and as
many more as any method needs whose best lies at the edge. Only runs with the best rate are scored
on the development set, once, at their end.

The numbers of sentences and epochs are not settled yet: the pilots that they follow from are not
complete. all-MiniLM-L6-v2 is small and made for similarity, so no number can be compared with a
paper's.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import common, common_tasks

TASKS = {
    "cola": {"train": 1000, "epochs": 6},
    "mrpc": {"train": 500, "epochs": 6},
    "rte": {"train": 500, "epochs": 6},
    "stsb": {"train": 600, "epochs": 6},
    "sst2": {"train": 800, "epochs": 6},
}
ROWS = (
    "head_only",
    "bitfit",
    "full",
    "lora",
    "rslora",
    "lora_plus",
    "dora",
    "adalora",
    "pissa",
    "milora",
    "lora_ga",
    "eva",
    "vera",
    "miss",
    "lora_nf4",
)
STUDY = {
    "rows": ROWS,
    "columns": tuple(TASKS),
    "reference": "lora",
    "rates": {"per_decade": 2, "around": 2, "most_more": 2},
    "tuning": {"held_out": 400, "seeds": (100, 101)},
    "seeds": tuple(range(20)),
    "margin": 1.0,
    "claims": (
        "With the rate tuned, the upper one-sided 95% bound of every variant's mean gain over LoRA "
        "is below 1 point.",
        "Over disjoint sets of 1 or 3 seeds, the first place repeats in under half of the cases.",
    ),
}
ARGUMENTS = common_tasks.arguments(
    task=tuple(TASKS), row="lora", model=("minilm",), epochs=0, train=0
)
TABLE = common_tasks.table(
    "Against LoRA",
    tasks=tuple(TASKS),
    spread="ci95",
    seeds=len(STUDY["seeds"]),
    rows=dict.fromkeys(ROWS, ""),
    models=("minilm",),
)


def get_config(arg: str | None = None) -> ConfigDict:
    return config_of(common.choose(arg, ARGUMENTS))


def config_of(choice: Mapping[str, Any]) -> ConfigDict:
    """The config of one run, from values for all ARGUMENTS; other studies change it."""
    name, storage = common_tasks.stored(choice["row"])
    size = {key: choice.get(key) or value for key, value in TASKS[choice["task"]].items()}
    config = common_tasks.experiment(
        "against_lora",
        choice,
        common_tasks.laptop(rate="tried", batch_size=16, epochs=size["epochs"], max_length=64),
        variant=common.variant(name),
        storage=storage,
    )
    config.update({"data": {"draw": choice["seed"], "unlabelled": False}})
    if choice["size"] != "smoke":
        config.update({"data": {"train": size["train"], "buckets": 4}})
        config.update({"train": {"evaluations": 1, "checkpoint_every": 0}})
    return config
