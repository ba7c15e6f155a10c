"""Make a task from a source's records; the model sees the same texts from every source.

Most tasks are a sentence or a pair, unchanged. In WiC, the word comes before the first sentence. In
COPA, each choice is one pair: the premise and the question, then the choice. The right choice has
label 1. COPA's accuracy is the official one, over questions: the choice with the higher score wins.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lora_jax.data.tasks.examples import Examples
from lora_jax.data.tasks.glue import SPECS, TaskPart, TaskSpec
from lora_jax.data.tasks.task import Task


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
    parts = {
        part.name: examples(spec, f"{name}/{part.name}", records)
        for part in spec.parts
        if (records := read(name, spec, part)) is not None
    }
    unlabelled = {part.name for part in spec.parts if not part.labelled}
    predict = {key: each for key, each in parts.items() if key in unlabelled}
    labelled = {key: each for key, each in parts.items() if key not in unlabelled}
    if spec.trained_on:
        base = assemble(spec.trained_on, read)
        return Task(
            name=name,
            train=base.train,
            validation=base.validation,
            label_names=base.label_names,
            extra={**base.extra, **labelled},
            unlabelled=predict,
            metrics=base.metrics,
            metric=base.metric,
            extra_metrics={part.name: part.metrics for part in spec.parts if part.name in labelled},
        )
    main = ("train", "validation")
    return Task(
        name=name,
        train=parts["train"],
        validation=parts["validation"],
        label_names=("wrong", "right") if spec.choices > 1 else spec.label_names,
        extra={k: v for k, v in labelled.items() if k not in main},
        unlabelled=predict,
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
