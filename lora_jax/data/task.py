"""A task: the data to train on, the data to evaluate on, and the metrics.

`Task` is for texts with labels, and `TextTask` for prompts with completions.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lora_jax.data.examples import Examples, Prompts, sha256_of
from lora_jax.data.split import (
    TooFewError,
    normalise,
    permutation,
    plain_split,
    quotas,
    stratified_split,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """The data to train and evaluate on, and the metrics.

    `label_names` are the classes, in the order of their numbers; None makes the task a regression.
    `extra` are further labelled sets to evaluate on (MNLI's mismatched part, another domain).
    `unlabelled` are sets that only get predictions (test parts). `metrics` are names of metrics of
    `label_metrics.score`, by default accuracy or Pearson's correlation. `metric`
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
        object.__setattr__(self, "metric", _main_metric(self.name, self.metrics, self.metric))
        if unknown := self.extra_metrics.keys() - self.extra.keys():
            raise ValueError(
                f"task {self.name!r}: extra_metrics has {min(unknown)!r}, which is not an extra "
                "part"
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


@dataclasses.dataclass(frozen=True, eq=False)
class TextTask:
    """The data to train and evaluate on, and the metrics; the counterpart of `Task` for texts.

    `extra` are further parts to evaluate on (a test part, each set of a joint task). `unlabelled`
    are parts that only get predictions. `metrics` are names that
    `label_metrics.score_parts` gives for the validation part; by default accuracy
    and the loss over options if the validation part has options, else the loss per token and
    perplexity. `metric` is the main one, by default the first. `hold_out` and `few` take two
    prompts for the same if `key` returns the same for both.

    Raises `ValueError` for a main metric that is not in `metrics`, for a train part without
    completions, and for a part to evaluate on that has neither options nor completions.
    """

    name: str
    train: Prompts
    validation: Prompts
    extra: Mapping[str, Prompts] = dataclasses.field(default_factory=dict)
    unlabelled: Mapping[str, Prompts] = dataclasses.field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    metric: str = ""
    key: Callable[[str], str] = normalise

    def __post_init__(self):
        if not self.metrics:
            choice = self.validation.options is not None
            names = ("accuracy", "eval_loss") if choice else ("token_loss", "perplexity")
            object.__setattr__(self, "metrics", names)
        object.__setattr__(self, "metric", _main_metric(self.name, self.metrics, self.metric))
        if self.train.completions is None:
            raise ValueError(
                f"data set {self.train.name!r} of task {self.name!r} has nothing to learn"
            )
        for part in (self.validation, *self.extra.values()):
            if part.options is None and part.completions is None:
                raise ValueError(
                    f"data set {part.name!r} of task {self.name!r} has neither options "
                    "nor completions to score"
                )

    def digest(self) -> str:
        """SHA-256 of everything that affects a result, for records; the same on every machine.

        It covers the metrics and every part except those that only get predictions, but no names.
        """
        return sha256_of(
            {
                "train": self.train.digest(),
                "validation": self.validation.digest(),
                "extra": {name: part.digest() for name, part in sorted(self.extra.items())},
                "metrics": [self.metrics, self.metric],
            }
        )

    def scored(self, size: int) -> "TextTask":
        """The task with at most `size` examples in each validation or extra part, evenly spaced."""

        def some(part: Prompts) -> Prompts:
            count = len(part)
            return part if count <= size else part.take(np.arange(size) * count // size)

        parts = {name: some(part) for name, part in self.extra.items()}
        return dataclasses.replace(self, validation=some(self.validation), extra=parts)

    def hold_out(self, size: int, seed: int = 0) -> "TextTask":
        """The task with `size` examples of train held out as its validation part.

        The development parts, `validation` and `extra`, are dropped, so that a selection on the new
        validation part has not seen them. The held-out part has no prompt twice. Other examples
        that share a prompt or a group with it, directly or through others, are dropped from train.
        Answers are in proportion. If the dropped validation part has references, the held-out
        prompts get references too: all completions that train had for them.
        """
        if self.validation.options is not None and self.train.options is None:
            raise ValueError(
                f"task {self.name!r}: {self.validation.name!r} has options, but "
                f"{self.train.name!r} has none to hold out for validation"
            )
        held = _draw(self, size, seed)
        together = _together(self)
        rest = np.flatnonzero(~np.isin(together, together[held]))
        if not len(rest):
            raise TooFewError(
                f"task {self.name!r}: holding out {size} examples of {self.train.name!r} "
                "leaves none"
            )
        held_out = self.train.take(held)
        if self.validation.references is not None and held_out.references is None:
            found = _completions(self)
            references = [found[self.key(prompt)] for prompt in held_out.prompts]
            held_out = dataclasses.replace(held_out, references=references)
        validation = dataclasses.replace(held_out, name=f"{self.train.name} (held out)")
        train = self.train.take(rest)
        return dataclasses.replace(self, train=train, validation=validation, extra={})

    def few(self, size: int, draw: int = 0) -> "TextTask":
        """The task with `size` training examples; `draw` seeds their choice.

        Answers are in proportion, and no two examples share a prompt or a group. All other parts
        stay. A `size` of the whole train part changes nothing.
        """
        if size == len(self.train):
            return self
        return dataclasses.replace(self, train=self.train.take(_draw(self, size, draw)))


def _main_metric(task: str, metrics: tuple[str, ...], metric: str) -> str:
    """A task's main metric, by default the first; ValueError if it is none of the metrics."""
    found = metric or metrics[0]
    if found not in metrics:
        raise ValueError(f"task {task!r}: the main metric {found!r} is not among {metrics}")
    return found


def _draw(task: TextTask, size: int, seed: int) -> np.ndarray:
    """The indices of `size` examples of train, ascending; at most one per prompt and group."""
    part = task.train
    first = np.unique(_together(task), return_index=True)[1]
    if not 0 < size <= len(first):
        raise TooFewError(
            f"task {task.name!r}: cannot draw {size} of {len(first)} different examples "
            f"of {part.name!r}"
        )
    candidates = np.sort(first)
    strata = np.zeros(len(part), np.int64) if part.answers is None else part.answers
    strata = strata[candidates]
    order = permutation(len(candidates), seed)
    chosen = [
        order[(strata == stratum)[order]][:quota] for stratum, quota in quotas(strata, size).items()
    ]
    return candidates[np.sort(np.concatenate(chosen))]


def _together(task: TextTask) -> np.ndarray:
    """A number for each example of train; equal for those linked by shared prompts or groups."""
    part = task.train
    keys = [[("prompt", task.key(prompt)) for prompt in part.prompts]]
    if part.groups is not None:
        keys.append([("group", group) for group in part.groups])
    numbers: dict[tuple[str, str], int] = {}
    count = len(part)
    rows, columns = [], []
    for column in keys:
        for row, key in enumerate(column):
            rows.append(row)
            columns.append(count + numbers.setdefault(key, len(numbers)))
    size = count + len(numbers)
    links = coo_array((np.ones(len(rows), np.int8), (rows, columns)), (size, size))
    return connected_components(links, directed=False)[1][:count]


def _completions(task: TextTask) -> dict[str, list[str]]:
    """The distinct stripped completions in train of each prompt's key, in order."""
    part = task.train
    found: dict[str, dict[str, None]] = {}
    for prompt, completion in zip(part.prompts, part.completions or (), strict=True):
        found.setdefault(task.key(prompt), {})[completion.strip()] = None
    return {key: list(each) for key, each in found.items()}
