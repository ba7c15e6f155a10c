"""Labelled texts, checked when they are made, so that bad data is found before any training."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """One split of a data set: texts or pairs of texts, each with a label.

    `labels` are class numbers (stored as int64) or real-valued targets (float64), one per text, and
    are read-only. `second_texts` are the other halves of sentence pairs, `ids` name the examples in
    their source, `name` names the data set in errors. Raises `ValueError` for no examples, for
    lengths that differ and for labels that are not numbers.
    """

    name: str
    texts: Sequence[str]
    labels: np.ndarray
    second_texts: Sequence[str] | None = None
    ids: Sequence[str] | None = None

    def __post_init__(self):
        for field in ("texts", "second_texts", "ids"):
            values = getattr(self, field)
            if values is None:
                continue
            if isinstance(values, str):  # a Sequence[str] too, of its characters
                raise ValueError(f"data set {self.name!r}: {field} is one string, not a list")
            values = tuple(values)
            for index, value in enumerate(values):
                if not isinstance(value, str):
                    raise ValueError(
                        f"data set {self.name!r}: {field}[{index}] is {value!r}, not a string"
                    )
            object.__setattr__(self, field, values)
        object.__setattr__(self, "labels", self._checked_labels())

        if not self.texts:
            raise ValueError(f"data set {self.name!r} is empty")
        for field in ("labels", "second_texts", "ids"):
            values = getattr(self, field)
            if values is not None and len(values) != len(self.texts):
                raise ValueError(
                    f"data set {self.name!r} has {len(self.texts)} texts but {len(values)} {field}"
                )

    def _checked_labels(self) -> np.ndarray:
        labels = np.asarray(self.labels)
        if labels.ndim != 1:
            raise ValueError(
                f"data set {self.name!r}: labels have shape {labels.shape}, not one number a text"
            )
        if labels.dtype.kind in "iub":
            labels = labels.astype(np.int64)
        elif labels.dtype.kind == "f":
            labels = labels.astype(np.float64)
            if not np.isfinite(labels).all():
                index = int(np.argmin(np.isfinite(labels)))
                raise ValueError(
                    f"data set {self.name!r}: label {index} is {labels[index]}, not a finite number"
                )
        else:
            raise ValueError(
                f"data set {self.name!r}: labels are {labels.dtype}, not class numbers or floats"
            )
        labels.flags.writeable = False
        return labels

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Examples":
        """The examples at `indices`, in that order, as a data set of their own."""
        indices = np.asarray(indices, np.int64)

        def pick(values: Sequence[str]) -> list[str]:
            return [values[int(i)] for i in indices]

        return Examples(
            name=self.name,
            texts=pick(self.texts),
            labels=self.labels[indices],
            second_texts=None if self.second_texts is None else pick(self.second_texts),
            ids=None if self.ids is None else pick(self.ids),
        )

    def digest(self) -> str:
        """SHA-256 of what training sees, in order: texts, second texts and labels, not the ids."""
        return _sha256([self.texts, self.second_texts, self.labels.tolist()])


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What to learn and what to measure it on.

    `label_names` are the classes, in the order of their numbers; None makes the task a regression.
    Raises `ValueError` for a split that shows one class (or one target value) only, and for labels
    that do not fit `label_names`.
    """

    name: str
    train: Examples
    validation: Examples
    label_names: tuple[str, ...] | None

    def __post_init__(self):
        names = self.label_names
        if names is not None and (len(names) < 2 or len(set(names)) < len(names)):
            raise ValueError(
                f"task {self.name!r}: label_names {names!r} are not two or more distinct names"
            )
        for split in (self.train, self.validation):
            self._check_labels(split)
        if (self.train.second_texts is None) != (self.validation.second_texts is None):
            raise ValueError(
                f"task {self.name!r}: only one of train and validation has second_texts"
            )

    def _check_labels(self, split: Examples):
        labels = split.labels
        if self.label_names is None:
            if labels.dtype.kind != "f":
                raise ValueError(
                    f"data set {split.name!r}: integer labels in a task without label_names; "
                    "a regression needs float labels"
                )
        else:
            if labels.dtype.kind != "i":
                raise ValueError(
                    f"data set {split.name!r}: float labels in a task with classes; "
                    "a regression has label_names=None"
                )
            last = len(self.label_names) - 1
            outside = np.flatnonzero((labels < 0) | (labels > last))
            if outside.size:
                index = int(outside[0])
                raise ValueError(
                    f"data set {split.name!r}: label {index} is {labels[index]}, not in 0..{last}"
                )
        if labels.min() == labels.max():
            label = labels[0] if self.label_names is None else repr(self.label_names[labels[0]])
            raise ValueError(
                f"data set {split.name!r}: all {len(split)} labels are {label}; "
                "there is nothing to tell apart"
            )

    @property
    def num_outputs(self) -> int:
        """How many numbers a model predicts per example: one per class, or one."""
        return 1 if self.label_names is None else len(self.label_names)

    def digest(self) -> str:
        """SHA-256 of both splits and of the label names, for records; equal on every machine."""
        return _sha256([self.label_names, self.train.digest(), self.validation.digest()])


def _sha256(content) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode("ascii")).hexdigest()
