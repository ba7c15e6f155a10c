"""A text-to-text task: the data a decoder trains on, the data to evaluate on, and the metrics."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lora_jax.data.tasks.examples import main_metric, sha256_of
from lora_jax.data.tasks.prompts import Prompts
from lora_jax.data.tasks.shuffle import permutation
from lora_jax.data.tasks.split import TooFewError, normalise, quotas


@dataclasses.dataclass(frozen=True, eq=False)
class TextTask:
    """The data to train and evaluate on, and the metrics; the counterpart of `Task` for texts.

    `extra` are further parts to evaluate on (a test part, each set of a joint task). `unlabelled`
    are parts that only get predictions. `metrics` are names that
    `lora_jax.metrics.label_metrics.score_parts` gives for the validation part; by default accuracy
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
        object.__setattr__(self, "metric", main_metric(self.name, self.metrics, self.metric))
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
