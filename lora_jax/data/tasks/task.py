"""A task: what to train on, what to measure on and by which metrics."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_jax.data.tasks.examples import Examples, sha256_of
from lora_jax.data.tasks.split import plain_split, stratified_split


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What to learn and what to measure it on.

    `label_names` are the classes, in the order of their numbers; None makes the task a regression.
    `extra` are further labelled sets to evaluate on (MNLI's mismatched part, another domain),
    `unlabelled` are sets that only get predictions (test parts). `metrics` are names that
    `lora_jax.metrics.label_metrics.score` knows and `metric` is the main one of them, accuracy or
    Pearson's correlation unless they are given; `extra_metrics` are those of extra parts that have
    metrics of their own. With `choices` above 1, so many examples in a row are the alternatives of
    one question, of which exactly one has label 1, and every part is cut between questions alone.

    Raises `ValueError` for a train or validation part that shows one class (or one target value)
    only, for labels that do not fit `label_names`, and for parts of which only some are pairs.
    """

    name: str
    train: Examples
    validation: Examples
    label_names: tuple[str, ...] | None
    extra: Mapping[str, Examples] = dataclasses.field(default_factory=dict)
    unlabelled: Mapping[str, Examples] = dataclasses.field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    metric: str = ""
    choices: int = 1
    extra_metrics: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        names = self.label_names
        if names is not None and (len(names) < 2 or len(set(names)) < len(names)):
            raise ValueError(
                f"task {self.name!r}: label_names {names!r} are not two or more distinct names"
            )
        if not self.metrics:
            object.__setattr__(self, "metrics", ("accuracy",) if names else ("pearson",))
        if not self.metric:
            object.__setattr__(self, "metric", self.metrics[0])
        if self.metric not in self.metrics:
            raise ValueError(
                f"task {self.name!r}: the main metric {self.metric!r} is not among {self.metrics}"
            )
        if unknown := self.extra_metrics.keys() - self.extra.keys():
            raise ValueError(f"task {self.name!r}: extra_metrics of no extra part {min(unknown)!r}")
        for part in (self.train, self.validation):
            self._check_differ(part, self._check_labels(part))
        for part in self.extra.values():
            self._check_labels(part)
        for where, part in {"validation": self.validation, **self.extra, **self.unlabelled}.items():
            if (part.second_texts is None) != (self.train.second_texts is None):
                raise ValueError(
                    f"task {self.name!r}: only one of train and {where} has second_texts"
                )

    def _check_labels(self, part: Examples) -> np.ndarray:
        labels = part.labels
        if labels is None:
            raise ValueError(f"data set {part.name!r} of task {self.name!r} has no labels")
        if self.label_names is None:
            if labels.dtype.kind != "f":
                raise ValueError(
                    f"data set {part.name!r}: integer labels in a task without label_names; "
                    "a regression needs float labels"
                )
            return labels
        if labels.dtype.kind != "i":
            raise ValueError(
                f"data set {part.name!r}: float labels in a task with classes; "
                "a regression has label_names=None"
            )
        last = len(self.label_names) - 1
        outside = np.flatnonzero((labels < 0) | (labels > last))
        if outside.size:
            index = int(outside[0])
            raise ValueError(
                f"data set {part.name!r}: label {index} is {labels[index]}, not in 0..{last}"
            )
        if self.choices > 1 and (
            len(labels) % self.choices or (labels.reshape(-1, self.choices).sum(1) != 1).any()
        ):
            raise ValueError(
                f"data set {part.name!r}: not every {self.choices} examples in a row "
                "have one right choice"
            )
        return labels

    def _check_differ(self, part: Examples, labels: np.ndarray):
        if labels.min() == labels.max():
            label = labels[0] if self.label_names is None else repr(self.label_names[labels[0]])
            raise ValueError(
                f"data set {part.name!r}: all {len(part)} labels are {label}; "
                "there is nothing to tell apart"
            )

    @property
    def num_outputs(self) -> int:
        """How many numbers a model predicts per example: one per class, or one."""
        return 1 if self.label_names is None else len(self.label_names)

    def digest(self) -> str:
        """SHA-256 of all that changes a result, for records; equal on every machine.

        That is every labelled part, the label names, the metrics and the choices; not the names,
        nor the parts that only get predictions.
        """
        content = [self.label_names, self.train.digest(), self.validation.digest()]
        more: dict[str, Any] = {
            "extra": {name: part.digest() for name, part in sorted(self.extra.items())},
            "metrics": [self.metrics, self.metric],
            "choices": self.choices,
        }
        if self.extra_metrics:
            more["extra_metrics"] = {k: list(v) for k, v in sorted(self.extra_metrics.items())}
        default = ("accuracy",) if self.label_names else ("pearson",)
        plain = {"extra": {}, "metrics": [default, default[0]], "choices": 1}
        # A plain task has the digest that it had before tasks had more than two parts.
        return sha256_of(content if more == plain else [*content, more])

    def hold_out(self, size: int, seed: int = 0) -> "Task":
        """The task with `size` examples of train as its validation part.

        The development parts, `validation` and `extra`, are dropped: nothing that is chosen on the
        new validation part has seen them. Classes are in proportion, targets of a regression are
        drawn plainly; no text is in both parts. The size counts questions where examples are
        choices.
        """
        rest, held_out = self._split(size, seed)
        validation = dataclasses.replace(held_out, name=f"{self.train.name} (held out)")
        new = {"train": rest, "validation": validation, "extra": {}, "extra_metrics": {}}
        return dataclasses.replace(self, **new)

    def few(self, size: int, draw: int = 0) -> "Task":
        """The task with `size` training examples (or questions): the draw-th draw of them.

        Classes are in proportion, and no text occurs twice. All other parts stay.
        """
        count = len(self.train) // self.choices
        if not 0 < size <= count:
            raise ValueError(
                f"task {self.name!r}: cannot draw {size} of {count} examples of {self.train.name!r}"
            )
        if size == count:
            return self
        return dataclasses.replace(self, train=self._split(size, draw)[1])

    def with_extra(
        self, name: str, examples: Examples, label_names: tuple[str, ...] | None = None
    ) -> "Task":
        """The task with a further labelled set to evaluate on; its metrics end in `_<name>`.

        `label_names` are those that its labels number. Where they are this task's in another order,
        labels are numbered anew; where they are others, a class is the one with its number.
        """
        if name in self.extra or name in ("train", "validation"):
            raise ValueError(f"task {self.name!r} already has a part {name!r}")
        own, labels = self.label_names, examples.labels
        if own and label_names and labels is not None and set(own) == set(label_names):
            numbers = np.array([own.index(each) for each in label_names])
            self._check_labels(examples)  # a negative one would count from the end
            examples = dataclasses.replace(examples, labels=numbers[labels])
        return dataclasses.replace(self, extra={**self.extra, name: examples})

    def _split(self, size: int, seed: int) -> tuple[Examples, Examples]:
        if self.label_names is None:
            return plain_split(self.train, size, seed)
        return stratified_split(self.train, size, seed, self.choices)
