"""Texts or arrays with labels, and prompts with completions: checked before any training."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
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


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayExamples(Examples):
    """Examples that are arrays, such as images; `texts` are digests of what each of them holds.

    So a split finds equal examples as it finds equal texts.
    """

    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """(n, ...) by name, such as `images`."""

    @classmethod
    def of(cls, name: str, arrays: Mapping[str, np.ndarray], labels: np.ndarray) -> Self:
        """Examples of these arrays.

        Raises:
          ValueError: no arrays, arrays that are not numbers or not finite, or of other lengths.
        """
        for key, array in arrays.items():
            if array.ndim < 1 or len(array) != len(labels):
                raise ValueError(
                    f"data set {name!r}: '{key}' has shape {array.shape}, and there are "
                    f"{len(labels)} labels"
                )
            if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
                raise ValueError(f"data set {name!r}: '{key}' has what is not a finite number")
        if not arrays:
            raise ValueError(f"data set {name!r} has labels alone")
        first = sha256_of([[key, str(x.dtype), x.shape[1:]] for key, x in sorted(arrays.items())])
        columns = [np.ascontiguousarray(array) for _, array in sorted(arrays.items())]
        texts = []
        for row in range(len(labels)):
            digest = hashlib.sha256(first.encode())
            for column in columns:
                digest.update(column[row].tobytes())
            texts.append(digest.hexdigest())
        return cls(name, texts, labels, arrays=dict(arrays))

    @property
    def columns(self) -> dict[str, Any]:
        return {name: each for name, each in super().columns.items() if name != "arrays"}

    def take(self, indices: Sequence[int] | np.ndarray) -> Self:
        taken = {name: array[np.asarray(indices, np.int64)] for name, array in self.arrays.items()}
        return dataclasses.replace(super().take(indices), arrays=taken)


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


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts(Part):
    """One part of a text-to-text task: n prompts, and what to learn or score for each of them.

    `completions` are learned (the loss is on their tokens, and on the end of text after them).
    `options` are the possible answers to a question: two or more, and their number may differ
    between questions. `answers` (int64, read-only) are the indices of the right ones. `references`
    are the texts that a generated text is compared with, one or more per prompt. `ids` name the
    examples in their source. Examples with equal `groups` must be on the same side of a split even
    if their prompts differ; a group is for example the passage that a question is about.

    Raises `ValueError` for no prompts, different lengths, values that are not strings, fewer than
    two options, an empty or repeated option, options without answers (or the reverse), answers that
    are not indices of options, and a prompt with an empty list of references.
    """

    prompts: Sequence[str]
    completions: Sequence[str] | None
    options: Sequence[Sequence[str]] | None = None
    answers: np.ndarray | None = None
    references: Sequence[Sequence[str]] | None = None
    ids: Sequence[str] | None = None
    groups: Sequence[str] | None = None

    def __post_init__(self):
        for field in ("prompts", "completions", "ids", "groups"):
            if (values := getattr(self, field)) is not None:
                object.__setattr__(self, field, texts_of(self.name, field, values))
        for field in ("options", "references"):
            if (values := getattr(self, field)) is not None:
                rows = tuple(
                    texts_of(self.name, f"{field}[{i}]", row) for i, row in enumerate(values)
                )
                object.__setattr__(self, field, rows)
        self.require_one_length()
        if (self.options is None) != (self.answers is None):
            raise ValueError(f"data set {self.name!r}: options and answers must be given together")
        if self.options is not None:
            for index, each in enumerate(self.options):
                if len(each) < 2 or len(set(each)) < len(each) or "" in each:
                    raise ValueError(
                        f"data set {self.name!r}: options[{index}] is {each!r}, "
                        "not two or more distinct texts"
                    )
            object.__setattr__(self, "answers", self._checked(np.asarray(self.answers)))
        for index, references in enumerate(self.references or ()):
            if not references:
                raise ValueError(f"data set {self.name!r}: references[{index}] is empty")

    def _checked(self, answers: np.ndarray) -> np.ndarray:
        if answers.ndim != 1 or answers.dtype.kind not in "iu":
            raise ValueError(
                f"data set {self.name!r}: answers are {answers.dtype} of shape {answers.shape}, "
                "not one integer for each prompt"
            )
        answers = answers.astype(np.int64)
        outside = np.flatnonzero((answers < 0) | (answers >= self.option_counts))
        if outside.size:
            index = int(outside[0])
            raise ValueError(
                f"data set {self.name!r}: answer {index} is {answers[index]}, "
                f"of {self.option_counts[index]} options"
            )
        answers.flags.writeable = False
        return answers

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def option_counts(self) -> np.ndarray:
        """The number of options of each question, int64 (n,); zeros if there are no options."""
        if self.options is None:
            return np.zeros(len(self), np.int64)
        return np.array([len(each) for each in self.options], np.int64)

    def digest(self) -> str:
        """SHA-256 of all that training and scores use, in order: neither ids nor groups."""
        answers = None if self.answers is None else self.answers.tolist()
        content = [self.prompts, self.completions, self.options, answers, self.references]
        return sha256_of(content)

    def text_digest(self) -> str:
        """SHA-256 of what a tokenizer sees, in order: prompts, completions and options."""
        return sha256_of([self.prompts, self.completions, self.options])


def concatenate(name: str, parts: Sequence[Prompts]) -> Prompts:
    """Join the examples of several parts, in order, into one part named `name`.

    Raises `ValueError` if only some parts have a field.
    """
    columns = [part.columns for part in parts]
    for part, own in zip(parts, columns, strict=True):
        if differ := sorted(columns[0].keys() ^ own.keys()):
            named = f"{parts[0].name!r} and {part.name!r}"
            raise ValueError(f"cannot join data sets: only one of {named} has {', '.join(differ)}")
    joined: Any = {key: [x for own in columns for x in own[key]] for key in columns[0]}
    return Prompts(**{"name": name, "completions": None, **joined})
