"""The tasks of benchmarks, one file for each benchmark: nothing else lists them.

A file has `TASKS`, a `TaskSpec` for each name: its files, columns, classes, texts and metrics, as
plain data. `data.name` is the names of file and task: `glue/cola` is `TASKS["cola"]` of `glue.py`.
`assemble` makes a `Task` from what a source reads, so that a model sees the same texts from every
source.

Most tasks are a sentence or a pair, unchanged. In WiC, the word comes before the first sentence. In
COPA, each choice is one pair: the premise and the question, then the choice. The right choice has
label 1. COPA's accuracy is the official one, over questions: the choice with the higher score wins.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lora_jax.data.examples import Examples
from lora_jax.data.task import Task


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


TSV = (
    TaskPart("train", ("train.tsv",), "train"),
    TaskPart("validation", ("dev.tsv",), "validation"),
    TaskPart("test", ("test.tsv",), "test", labelled=False),
)
"""The parts of most tasks of GLUE."""

JSONL = (
    TaskPart("train", ("train.jsonl",), "train"),
    TaskPart("validation", ("val.jsonl",), "validation"),
    TaskPart("test", ("test.jsonl",), "test", labelled=False),
)
"""The parts of the tasks of SuperGLUE."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task.

    `folders` are the possible names of its folder. `columns` maps each text's name in
    tensorflow-datasets to its column in the official files. `text` and `seconds` are templates that
    use these names. One second text makes a pair; two make two examples, the choices of one
    question. Classes are in the order of their numbers in the official files and in
    tensorflow-datasets; a regression has none. The first of the metrics is the one that LoRA papers
    report for the task and select by; if there are two, GLUE's own score is their mean.
    """

    folders: tuple[str, ...]
    parts: tuple[TaskPart, ...] = TSV
    columns: Mapping[str, str]
    text: str
    seconds: tuple[str, ...]
    label_names: tuple[str, ...] | None
    metrics: tuple[str, ...]
    archives: tuple[str, ...] = ()  # the official downloads, as tensorflow-datasets names them
    label: str = "label"
    header: tuple[str, ...] = ()  # the columns of labelled files without a header
    skip_incomplete: bool = False  # leave out rows without a text or a label
    phrases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trained_on: str = ""  # the task whose training and development parts go with this one
    examples: int | None = None  # to train on; plans know them before the data is here

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]

    @property
    def choices(self) -> int:
        return max(1, len(self.seconds))


class Record(NamedTuple):
    """One row of a task: its label, and its texts by their names in tensorflow-datasets."""

    values: dict[str, str]
    label: int | float | None


# From a task's name, its spec and a part: the records in the order of the source, or None if the
# part is optional and missing.
Read = Callable[[str, TaskSpec, TaskPart], Sequence[Record] | None]


def assemble(name: str, read: Read) -> Task:
    """Make the task `name` from the parts that `read` returns.

    Missing parts (`read` returned None) are left out. The diagnostic set (`glue/ax`) is MNLI with
    this set as the only part to predict, as the official instructions say. If the set's labelled
    file exists, it is one more part to evaluate on, `ax`.
    """
    spec = SPECS[name]
    labelled: dict[str, Examples] = {}
    unlabelled: dict[str, Examples] = {}
    for part in spec.parts:
        if (records := read(name, spec, part)) is not None:
            parts = labelled if part.labelled else unlabelled
            parts[part.name] = examples(spec, f"{name}/{part.name}", records)
    if spec.trained_on:
        base = assemble(spec.trained_on, read)
        return dataclasses.replace(
            base,
            name=name,
            extra={**base.extra, **labelled},
            unlabelled=unlabelled,
            extra_metrics={part.name: part.metrics for part in spec.parts if part.name in labelled},
        )
    return Task(
        name=name,
        train=labelled.pop("train"),
        validation=labelled.pop("validation"),
        label_names=("wrong", "right") if spec.choices > 1 else spec.label_names,
        extra=labelled,
        unlabelled=unlabelled,
        metrics=spec.metrics,
        metric=spec.metric,
        choices=spec.choices,
    )


def examples(spec: TaskSpec, name: str, records: Sequence[Record]) -> Examples:
    """The examples of one part; an id is the record's place, then `-` and the choice if several."""
    texts, seconds, labels, ids = [], [], [], []
    for place, record in enumerate(records):
        values = {key: spec.phrases.get(value, value) for key, value in record.values.items()}
        for choice in range(spec.choices):
            texts.append(spec.text.format_map(values))
            if spec.seconds:
                seconds.append(spec.seconds[choice].format_map(values))
            if spec.choices > 1:
                labels.append(int(record.label == choice))
                ids.append(f"{place}-{choice}")
            else:
                labels.append(record.label if spec.label_names else _target(record.label))
                ids.append(str(place))
    labelled = all(record.label is not None for record in records)
    return Examples(
        name=name,
        texts=texts,
        labels=np.array(labels) if labelled else None,
        second_texts=seconds if spec.seconds else None,
        ids=ids,
    )


def _target(label: float | None) -> float | None:
    """A regression's target, rounded to the digits of a float32: 3.8 and not 3.799999952.

    tensorflow-datasets stores float32; a number from a file is rounded in the same way.
    """
    return None if label is None else float(str(np.float32(label)))


def find_specs() -> dict[str, TaskSpec]:
    """The specs in all files of this folder, by the names of file and task."""
    files = sorted(module.name for module in pkgutil.iter_modules(__path__))
    tasks = {file: importlib.import_module(f"{__name__}.{file}").TASKS for file in files}
    return {f"{file}/{name}": spec for file, specs in tasks.items() for name, spec in specs.items()}


SPECS: dict[str, TaskSpec] = find_specs()
"""The spec of each task by name."""
