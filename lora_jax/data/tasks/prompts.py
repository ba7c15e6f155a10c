"""Prompts with completions to learn, and with options or references to score answers by.

The counterpart of `Examples` for text-to-text tasks, checked on creation in the same way.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lora_jax.data.tasks.examples import Part, sha256_of, texts_of


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
    fields = {}
    for field in ("prompts", "completions", "options", "answers", "references", "ids", "groups"):
        values = [getattr(part, field) for part in parts]
        missing = [part.name for part, value in zip(parts, values, strict=True) if value is None]
        if missing and len(missing) < len(parts):
            raise ValueError(f"cannot join data sets: {missing[0]!r} has no {field}, others have")
        if missing:
            fields[field] = None
        elif field == "answers":
            fields[field] = np.concatenate(values)
        else:
            fields[field] = [each for value in values for each in value]
    return Prompts(name=name, **fields)
