"""The tasks of SuperGLUE (Wang et al., 2019, arXiv:1905.00537); numbers from its Table 1."""

from lora_jax.data.tasks import JSONL, TaskSpec

_NLI = {"premise": "premise", "hypothesis": "hypothesis"}

TASKS = {
    "boolq": TaskSpec(
        folders=("BoolQ",),
        parts=JSONL,
        columns={"question": "question", "passage": "passage"},
        text="{question}",
        seconds=("{passage}",),
        label_names=("False", "True"),
        metrics=("accuracy",),
        archives=("BoolQ.zip",),
        examples=9427,
    ),
    "cb": TaskSpec(
        folders=("CB",),
        parts=JSONL,
        columns=_NLI,
        text="{premise}",
        seconds=("{hypothesis}",),
        label_names=("entailment", "contradiction", "neutral"),
        metrics=("accuracy", "f1", "accuracy_f1"),
        archives=("CB.zip",),
        examples=250,
    ),
    "copa": TaskSpec(
        folders=("COPA",),
        parts=JSONL,
        columns={name: name for name in ("premise", "choice1", "choice2", "question")},
        text="{premise} {question}",
        seconds=("{choice1}", "{choice2}"),
        label_names=("choice1", "choice2"),
        metrics=("accuracy",),
        archives=("COPA.zip",),
        phrases={"cause": "What was the cause?", "effect": "What happened as a result?"},
        examples=800,  # 400 questions, each with two choices
    ),
    "wic": TaskSpec(
        folders=("WiC",),
        parts=JSONL,
        columns={name: name for name in ("word", "sentence1", "sentence2")},
        text="{word}: {sentence1}",
        seconds=("{sentence2}",),
        label_names=("False", "True"),
        metrics=("accuracy",),
        archives=("WiC.zip",),
        examples=5428,
    ),
    "rte": TaskSpec(
        folders=("RTE",),
        parts=JSONL,
        columns=_NLI,
        text="{premise}",
        seconds=("{hypothesis}",),
        label_names=("entailment", "not_entailment"),
        metrics=("accuracy",),
        archives=("RTE.zip",),
        examples=2490,
    ),
}
