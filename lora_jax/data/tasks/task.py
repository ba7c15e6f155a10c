"""A task: the data to train on, the data to evaluate on, and the metrics."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lora_jax.data.tasks.examples import Examples, main_metric, sha256_of
from lora_jax.data.tasks.split import TooFewError, normalise, plain_split, stratified_split


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """The data to train and evaluate on, and the metrics.

    `label_names` are the classes, in the order of their numbers; None makes the task a regression.
    `extra` are further labelled sets to evaluate on (MNLI's mismatched part, another domain).
    `unlabelled` are sets that only get predictions (test parts). `metrics` are names of metrics of
    `lora_jax.metrics.label_metrics.score`, by default accuracy or Pearson's correlation. `metric`
    is the main one, by default the first. `extra_metrics` are the metrics of extra parts that have
    their own. With `choices` above 1, this many consecutive examples are the choices of one
    question; exactly one of them has label 1, and a part is only ever split between questions.
    `hold_out` and `few` take two texts for the same if `key` returns the same for both.

    Raises `ValueError` for a train or validation part with only one class (or one target value),
    for labels that do not fit `label_names`, and if only some parts are pairs.
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
    key: Callable[[str], str] = normalise

    def __post_init__(self):
        names = self.label_names
        if names is not None and (len(names) < 2 or len(set(names)) < len(names)):
            raise ValueError(
                f"task {self.name!r}: label_names {names!r} are not two or more distinct names"
            )
        if not self.metrics:
            object.__setattr__(self, "metrics", ("accuracy",) if names else ("pearson",))
        object.__setattr__(self, "metric", main_metric(self.name, self.metrics, self.metric))
        if unknown := self.extra_metrics.keys() - self.extra.keys():
            raise ValueError(
                f"task {self.name!r}: extra_metrics has {min(unknown)!r}, which is no extra part"
            )
        for what, part in {"train on": self.train, "score": self.validation}.items():
            labels = self._check_labels(part)
            if labels.min() == labels.max():
                label = repr(names[labels[0]]) if names else labels[0]
                alone = len(part) == 1
                count = "the one example" if alone else f"all {len(part)} examples"
                raise ValueError(
                    f"data set {part.name!r}: {count} to {what} {'has' if alone else 'have'} the "
                    f"label {label}; there is nothing to tell apart"
                )
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
                f"data set {part.name!r}: each {self.choices} examples in a row must have "
                "exactly one right choice"
            )
        return labels

    @property
    def num_outputs(self) -> int:
        """How many numbers a model outputs per example: one per class, or one for a regression."""
        return 1 if self.label_names is None else len(self.label_names)

    def digest(self) -> str:
        """SHA-256 of everything that affects a result, for records; the same on every machine.

        It covers every labelled part, the label names, the metrics and the choices, but not the
        task's name, the data sets' names and the parts that only get predictions.
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
        # A plain task keeps the digest from before tasks had more than two parts.
        return sha256_of(content if more == plain else [*content, more])

    def hold_out(self, size: int, seed: int = 0) -> "Task":
        """The task with `size` examples of train held out as its validation part.

        The development parts, `validation` and `extra`, are dropped, so that a selection on the new
        validation part has not seen them. Classes are in proportion; examples of a regression are
        drawn regardless of targets. No text is in both parts. If examples are choices, `size`
        counts questions.
        """
        rest, held_out = self._split(size, seed)
        validation = dataclasses.replace(held_out, name=f"{self.train.name} (held out)")
        new = {"train": rest, "validation": validation, "extra": {}, "extra_metrics": {}}
        return dataclasses.replace(self, **new)

    def few(self, size: int, draw: int = 0) -> "Task":
        """The task with `size` training examples (or questions); `draw` seeds their choice.

        Classes are in proportion, and no text occurs twice. All other parts stay. A `size` of the
        whole train part changes nothing.
        """
        count = len(self.train) // self.choices
        if not 0 < size <= count:
            raise TooFewError(
                f"task {self.name!r}: cannot draw {size} of {count} examples of {self.train.name!r}"
            )
        if size == count:
            return self
        return dataclasses.replace(self, train=self._split(size, draw)[1])

    def with_extra(
        self, name: str, examples: Examples, label_names: tuple[str, ...] | None = None
    ) -> "Task":
        """The task with a further labelled set to evaluate on; its metrics end in `_<name>`.

        `label_names` are the class names of the set's labels. If they are this task's names in
        another order, the labels are renumbered. If they are other names, numbers are kept.
        """
        if name in self.extra or name in ("train", "validation"):
            raise ValueError(f"task {self.name!r} already has a part {name!r}")
        own, labels = self.label_names, examples.labels
        if own and label_names and labels is not None and set(own) == set(label_names):
            numbers = np.array([own.index(each) for each in label_names])
            self._check_labels(examples)  # a negative label would index from the end
            examples = dataclasses.replace(examples, labels=numbers[labels])
        return dataclasses.replace(self, extra={**self.extra, name: examples})

    def _split(self, size: int, seed: int) -> tuple[Examples, Examples]:
        if self.label_names is None:
            return plain_split(self.train, size, seed, self.key)
        return stratified_split(self.train, size, seed, self.choices, self.key, self.label_names)
