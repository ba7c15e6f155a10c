"""Few training examples: 100 to 1,000, labels in proportion, in several draws.

    python -m experiments.train --config=configs/few_shot.py:task=rte,examples=100,draw=0 \
        --workdir=runs/few_shot/rte/lora/100/0
    python -m experiments.table --table=few_shot --results=runs/few_shot

`draw` seeds the choice of examples, `seed` the training. Runs that differ in either share a cell.
With several draws, each counts once, with the mean of its runs. The interval is then of new draws,
and of new seeds only if no two draws share one. Every run makes 300 steps of 16 examples, however
many examples there are, and is evaluated once, at the end: nothing is selected on the development
set.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks

ARGUMENTS = common_tasks.arguments(
    task=("rte", "cola", "mrpc", "sst2", "mnli", "qnli", "qqp", "boolq", "wic"),
    variant="lora",
    examples=(100, 250, 500, 1000),
    model=("minilm", "roberta_base"),
    draw=0,
)
TABLE = common_tasks.table("Few examples", spread="ci95", seeds=5)
STEPS = 300


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    config = common_tasks.experiment(
        "few_shot",
        choice,
        common_tasks.starting_point(choice["model"], batch_size=16, select="last"),
        column=f"{choice['task']}_{choice['examples']}",
        variant=common.variant(choice["variant"]),
    )
    config.update({"data": {"train": choice["examples"], "draw": choice["draw"]}})
    if choice["size"] != "smoke":
        epochs = -(-STEPS * 16 // choice["examples"])  # enough for all steps
        config.update({"train": {"max_steps": STEPS, "evaluations": 1, "epochs": epochs}})
    return config
