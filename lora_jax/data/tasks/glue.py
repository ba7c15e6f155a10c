"""The tasks of GLUE and of SuperGLUE as plain data: files, columns, classes, texts and metrics.

Classes are in the order of their numbers in the official files and in tensorflow-datasets. `metric`
is the metric that LoRA papers report for a task and select by. If a task has two metrics, GLUE's
own score is their mean. Sources: Wang et al., 2018 (GLUE), 2019 (SuperGLUE).
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class TaskPart:
    """One part of a task: its file in the official layout, and its split in tensorflow-datasets."""

    name: str
    files: tuple[str, ...]  # possible names; the first that exists is read
    split: str  # empty if tensorflow-datasets lacks the part
    labelled: bool = True
    columns: Mapping[str, str] | None = None  # of its texts, if they differ from the task's
    label: str = ""  # the label's column, if it differs
    metrics: tuple[str, ...] = ()  # if they differ


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One task.

    `columns` maps each text's name in tensorflow-datasets to its column in the official files.
    `text` and `seconds` are templates that use these names. One second text makes a pair; two make
    two examples, the choices of one question.
    """

    folders: tuple[str, ...]
    parts: tuple[TaskPart, ...]
    columns: Mapping[str, str]
    text: str
    seconds: tuple[str, ...]
    label_names: tuple[str, ...] | None
    metrics: tuple[str, ...]
    archives: tuple[str, ...]  # the official downloads, as tensorflow-datasets names them
    label: str = "label"
    header: tuple[str, ...] = ()  # the columns of labelled files without a header
    skip_incomplete: bool = False  # leave out rows without a text or a label
    phrases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trained_on: str = ""  # the task whose training and development parts go with this one

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]

    @property
    def choices(self) -> int:
        return max(1, len(self.seconds))


_GLUE = (
    TaskPart("train", ("train.tsv",), "train"),
    TaskPart("validation", ("dev.tsv",), "validation"),
    TaskPart("test", ("test.tsv",), "test", labelled=False),
)
_MNLI = (
    TaskPart("train", ("train.tsv",), "train"),
    TaskPart("validation", ("dev_matched.tsv",), "validation_matched"),
    TaskPart("mismatched", ("dev_mismatched.tsv",), "validation_mismatched"),
    TaskPart("test_matched", ("test_matched.tsv",), "test_matched", labelled=False),
    TaskPart("test_mismatched", ("test_mismatched.tsv",), "test_mismatched", labelled=False),
)
_SUPER_GLUE = (
    TaskPart("train", ("train.jsonl",), "train"),
    TaskPart("validation", ("val.jsonl",), "validation"),
    TaskPart("test", ("test.jsonl",), "test", labelled=False),
)
_SENTENCES = {"sentence1": "sentence1", "sentence2": "sentence2"}
_NLI = {"premise": "premise", "hypothesis": "hypothesis"}
_ACCURACY_F1 = ("accuracy", "f1", "accuracy_f1")

SPECS: Mapping[str, TaskSpec] = {
    "glue/cola": TaskSpec(
        folders=("CoLA",),
        parts=_GLUE,
        columns={"sentence": "sentence"},
        text="{sentence}",
        seconds=(),
        label_names=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        archives=("CoLA.zip",),
        label="is_acceptable",
        header=("source", "is_acceptable", "author_mark", "sentence"),
    ),
    "glue/sst2": TaskSpec(
        folders=("SST-2",),
        parts=_GLUE,
        columns={"sentence": "sentence"},
        text="{sentence}",
        seconds=(),
        label_names=("negative", "positive"),
        metrics=("accuracy",),
        archives=("SST-2.zip",),
    ),
    "glue/mrpc": TaskSpec(
        folders=("MRPC",),
        parts=_GLUE,
        columns={"sentence1": "#1 String", "sentence2": "#2 String"},
        text="{sentence1}",
        seconds=("{sentence2}",),
        label_names=("not_equivalent", "equivalent"),
        metrics=_ACCURACY_F1,
        archives=(
            "msr_paraphrase_train.txt",
            "msr_paraphrase_test.txt",
            "data_mrpc_dev_ids.tsv",
        ),
        label="Quality",
    ),
    "glue/qqp": TaskSpec(
        folders=("QQP",),
        parts=_GLUE,
        columns={"question1": "question1", "question2": "question2"},
        text="{question1}",
        seconds=("{question2}",),
        label_names=("not_duplicate", "duplicate"),
        metrics=_ACCURACY_F1,
        archives=("QQP.zip",),
        label="is_duplicate",
        skip_incomplete=True,
    ),
    "glue/stsb": TaskSpec(
        folders=("STS-B",),
        parts=_GLUE,
        columns=_SENTENCES,
        text="{sentence1}",
        seconds=("{sentence2}",),
        label_names=None,
        metrics=("pearson", "spearman", "pearson_spearman"),
        archives=("STS-B.zip",),
        label="score",
    ),
    "glue/mnli": TaskSpec(
        folders=("MNLI",),
        parts=_MNLI,
        columns={"premise": "sentence1", "hypothesis": "sentence2"},
        text="{premise}",
        seconds=("{hypothesis}",),
        label_names=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        archives=("MNLI.zip",),
        label="gold_label",
    ),
    "glue/qnli": TaskSpec(
        folders=("QNLI",),
        parts=_GLUE,
        columns={"question": "question", "sentence": "sentence"},
        text="{question}",
        seconds=("{sentence}",),
        label_names=("entailment", "not_entailment"),
        metrics=("accuracy",),
        archives=("QNLIv2.zip",),
    ),
    "glue/rte": TaskSpec(
        folders=("RTE",),
        parts=_GLUE,
        columns=_SENTENCES,
        text="{sentence1}",
        seconds=("{sentence2}",),
        label_names=("entailment", "not_entailment"),
        metrics=("accuracy",),
        archives=("RTE.zip",),
    ),
    "glue/wnli": TaskSpec(
        folders=("WNLI",),
        parts=_GLUE,
        columns=_SENTENCES,
        text="{sentence1}",
        seconds=("{sentence2}",),
        label_names=("not_entailment", "entailment"),
        metrics=("accuracy",),
        archives=("WNLI.zip",),
    ),
    "glue/ax": TaskSpec(
        folders=("diagnostic", "AX"),
        parts=(
            TaskPart("diagnostic", ("diagnostic.tsv", "AX.tsv"), "test", labelled=False),
            TaskPart(
                "ax",
                ("diagnostic-full.tsv",),
                "",
                columns={"premise": "Premise", "hypothesis": "Hypothesis"},
                label="Label",
                metrics=(
                    "matthews",
                    "accuracy",
                ),  # the paper calls the first R3, over three classes
            ),
        ),
        columns={"premise": "sentence1", "hypothesis": "sentence2"},
        text="{premise}",
        seconds=("{hypothesis}",),
        label_names=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        archives=("tsvsWithoutLabels_AX.tsv",),
        trained_on="glue/mnli",
    ),
    "super_glue/boolq": TaskSpec(
        folders=("BoolQ",),
        parts=_SUPER_GLUE,
        columns={"question": "question", "passage": "passage"},
        text="{question}",
        seconds=("{passage}",),
        label_names=("False", "True"),
        metrics=("accuracy",),
        archives=("BoolQ.zip",),
    ),
    "super_glue/cb": TaskSpec(
        folders=("CB",),
        parts=_SUPER_GLUE,
        columns=_NLI,
        text="{premise}",
        seconds=("{hypothesis}",),
        label_names=("entailment", "contradiction", "neutral"),
        metrics=_ACCURACY_F1,
        archives=("CB.zip",),
    ),
    "super_glue/copa": TaskSpec(
        folders=("COPA",),
        parts=_SUPER_GLUE,
        columns={name: name for name in ("premise", "choice1", "choice2", "question")},
        text="{premise} {question}",
        seconds=("{choice1}", "{choice2}"),
        label_names=("choice1", "choice2"),
        metrics=("accuracy",),
        archives=("COPA.zip",),
        phrases={"cause": "What was the cause?", "effect": "What happened as a result?"},
    ),
    "super_glue/wic": TaskSpec(
        folders=("WiC",),
        parts=_SUPER_GLUE,
        columns={name: name for name in ("word", "sentence1", "sentence2")},
        text="{word}: {sentence1}",
        seconds=("{sentence2}",),
        label_names=("False", "True"),
        metrics=("accuracy",),
        archives=("WiC.zip",),
    ),
    "super_glue/rte": TaskSpec(
        folders=("RTE",),
        parts=_SUPER_GLUE,
        columns=_NLI,
        text="{premise}",
        seconds=("{hypothesis}",),
        label_names=("entailment", "not_entailment"),
        metrics=("accuracy",),
        archives=("RTE.zip",),
    ),
}
