"""Texts and their labels, checked on creation, so that bad data is found before any training."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Self

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A data set in columns of one length; `name` names it in errors."""

    name: str

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that it has, by name."""
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)[1:]}
        return {name: column for name, column in fields.items() if column is not None}

    def require_one_length(self) -> None:
        """Raise a ValueError if there are no examples, or columns of different lengths."""
        (first, count), *others = [(name, len(each)) for name, each in self.columns.items()]
        if not count:
            raise ValueError(f"data set {self.name!r} is empty")
        for name, own in others:
            if own != count:
                raise ValueError(f"data set {self.name!r} has {count} {first} but {own} {name}")

    def take(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The examples at `indices`, in that order, as a data set of their own."""
        indices = np.asarray(indices, np.int64)
        taken = {
            name: each[indices] if isinstance(each, np.ndarray) else [each[int(i)] for i in indices]
            for name, each in self.columns.items()
        }
        return dataclasses.replace(self, **taken)


@dataclasses.dataclass(frozen=True, eq=False)
class Examples(Part):
    """One split of a data set: texts or pairs of texts, each with a label.

    `labels` are class numbers (stored as int64) or real-valued targets (float64), one per text, and
    are read-only; None means that the texts only get predictions. `second_texts` are the second
    halves of sentence pairs. `ids` name the examples in their source. Raises `ValueError` for no
    examples, different lengths, and labels that are not finite numbers.
    """

    texts: Sequence[str]
    labels: np.ndarray | None
    second_texts: Sequence[str] | None = None
    ids: Sequence[str] | None = None

    def __post_init__(self):
        for field in ("texts", "second_texts", "ids"):
            if (values := getattr(self, field)) is not None:
                object.__setattr__(self, field, texts_of(self.name, field, values))
        if self.labels is not None:
            object.__setattr__(self, "labels", self._checked(np.asarray(self.labels)))
        self.require_one_length()

    def _checked(self, labels: np.ndarray) -> np.ndarray:
        if labels.ndim != 1:
            raise ValueError(
                f"data set {self.name!r}: labels have shape {labels.shape}, "
                "not one number for each text"
            )
        if labels.dtype.kind in "iub":
            if (
                labels.size and labels.max() > np.iinfo(np.int64).max
            ):  # a uint64 that would become negative
                raise ValueError(
                    f"data set {self.name!r}: label {labels.argmax()} is {labels.max()}, too large"
                )
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

    def digest(self) -> str:
        """SHA-256 of what training uses, in order: texts, second texts and labels, but not ids."""
        labels = None if self.labels is None else self.labels.tolist()
        return sha256_of([self.texts, self.second_texts, labels])

    def text_digest(self) -> str:
        """SHA-256 of what a tokenizer sees, in order: texts and second texts."""
        return sha256_of([self.texts, self.second_texts])


def main_metric(task: str, metrics: Sequence[str], metric: str) -> str:
    """A task's main metric, by default the first; ValueError if it is none of the metrics."""
    found = metric or metrics[0]
    if found not in metrics:
        raise ValueError(f"task {task!r}: the main metric {found!r} is not among {metrics}")
    return found


def texts_of(name: str, field: str, values: Sequence[str]) -> tuple[str, ...]:
    """The texts of a data set's field; ValueError if it is not a sequence of strings."""
    if isinstance(values, str):  # a string is itself a Sequence[str]
        raise ValueError(f"data set {name!r}: {field} is one string, not a list")
    values = tuple(values)
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"data set {name!r}: {field}[{index}] is {value!r}, not a string")
    return values


def sha256_of(content: Any) -> str:
    """SHA-256 of a JSON value; it is the same on every machine."""
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode("ascii")).hexdigest()
