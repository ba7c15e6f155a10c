"""A task's examples as tokens, as training takes them: batches, their losses, and their scores.

`LabelledTexts` are for an encoder with a head, `Completions` for a language model. A model's
forward pass takes `input_ids`, `attention_mask` and `token_type_ids` of a batch, and returns an
array (B, outputs). The two kinds differ in what these outputs are. `LabelledArrays` have other
arrays in the place of tokens, such as images.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from lora_jax.data.batches import (
    BatchPlan,
    EncodedArrays,
    PlannedBatch,
    collate,
    eval_plan,
    in_order,
)
from lora_jax.data.metrics import label_metrics
from lora_jax.data.task import Task, TextTask
from lora_jax.data.tokenizing.encode_prompts import option_outputs
from lora_jax.data.tokenizing.tokenize import Encoded
from lora_jax.training.step import Batch, cross_entropy, squared_error


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TokenisedTask(abc.ABC):
    """A task's examples as tokens of a model, whose weights are not needed for it."""

    task: Task | TextTask
    tokenizer: Any
    """A `Tokenizer`; None for arrays."""
    encoded: dict[str, Encoded]
    """The tokens of `train`, `validation` and the task's other parts, by name."""
    examples_per_second: float | None
    """The speed at which the training texts were tokenised; for cached texts, when they were."""
    boundaries: tuple[int, ...]
    """The lengths that batches are padded to."""
    shape: Any
    """The model's own config, such as a `BertConfig`; None for a user's own model."""

    def example(self, rows: int) -> dict[str, np.ndarray]:
        """A batch of zeros without labels: what a model takes, for its shapes."""
        ids = np.zeros((rows, self.boundaries[0]), np.int32)
        return dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids)

    @property
    def longest(self) -> int:
        """The padded length of the longest training batch, in tokens."""
        longest = int(self.encoded["train"].lengths.max())
        return next(each for each in self.boundaries if each >= longest)

    @property
    def scored(self) -> tuple[str, ...]:
        """The parts whose outputs are scored."""
        return "validation", *self.task.extra

    def plan(self, batch_size: int, seed: int) -> BatchPlan:
        """The plan of which training examples are in the batch of each step."""
        return BatchPlan(self.encoded["train"].lengths, batch_size, self.boundaries, seed)

    def batch(
        self, part: str, planned: PlannedBatch, batch_size: int, rows: NamedSharding | None = None
    ) -> dict[str, Any]:
        """The arrays of a planned batch of a part.

        Args:
          rows: the sharding of rows on a mesh, where each process makes those of its own devices; a
            row that only fills a device's share then repeats the first example of that share, or of
            the batch if it has none.
        """

        def made(indices: np.ndarray, size: int) -> dict[str, np.ndarray]:
            return self.collate(self.encoded[part], indices, planned.padded_length, size)

        if rows is None:
            return made(planned.indices, batch_size)
        return _sharded(rows, made, planned.indices, batch_size)

    def outputs(
        self, part: str, batch_size: int, call: Callable[[PlannedBatch], Any]
    ) -> np.ndarray:
        """The outputs of a model for each example of a part, in the data's order.

        Args:
          call: gives the outputs (B, outputs) of a planned batch.
        """
        plan = eval_plan(self.encoded[part].lengths, batch_size, self.boundaries)
        return self.examples(part, in_order(plan, [np.asarray(call(each)) for each in plan]))

    def collate(
        self, encoded: Encoded, indices: np.ndarray, padded_length: int, batch_size: int
    ) -> dict[str, np.ndarray]:
        """The arrays of a batch of these rows (`lora_jax.data.collate`)."""
        return collate(encoded, indices, padded_length, batch_size)

    def examples(self, part: str, rows: np.ndarray) -> np.ndarray:
        """From the outputs of a part's rows, (rows, outputs), to those of its examples."""
        return rows

    @abc.abstractmethod
    def loss(self, outputs: Array, batch: Batch) -> Array:
        """The loss of each row, (B,)."""

    @abc.abstractmethod
    def labels(self, part: str) -> np.ndarray | None:
        """The labels that a part's outputs are scored against, (n,); None without labels."""

    @abc.abstractmethod
    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The metrics of the outputs of each part, by name."""


class LabelledTexts(TokenisedTask):
    """Texts with classes or numbers; outputs are logits (B, C), or values (B, 1)."""

    task: Task

    def loss(self, outputs: Array, batch: Batch) -> Array:
        return (cross_entropy if self.task.label_names else squared_error)(outputs, batch)

    def labels(self, part: str) -> np.ndarray | None:
        task = self.task
        own = {"train": task.train, "validation": task.validation, **task.extra, **task.unlabelled}
        return own[part].labels

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        return label_metrics.score_parts(self.task, outputs)


class LabelledArrays(LabelledTexts):
    """Images or other arrays with classes or numbers; the model takes them by name."""

    encoded: dict[str, EncodedArrays]

    @classmethod
    def of(cls, task: Task) -> "LabelledArrays":
        """The arrays of a task, whose parts are `ArrayExamples`."""
        parts: dict[str, Any] = {"train": task.train, "validation": task.validation, **task.extra}
        encoded: Any = {name: EncodedArrays.of(part) for name, part in parts.items()}
        rest: Any = dict.fromkeys(("tokenizer", "examples_per_second", "shape"))
        return cls(task=task, encoded=encoded, boundaries=(1,), **rest)

    def example(self, rows: int) -> dict[str, np.ndarray]:
        arrays = self.encoded["train"].arrays.items()
        return {name: np.zeros((rows, *x.shape[1:]), x.dtype) for name, x in arrays}

    def collate(
        self, encoded: Encoded, indices: np.ndarray, padded_length: int, batch_size: int
    ) -> dict[str, np.ndarray]:
        assert isinstance(encoded, EncodedArrays)
        return encoded.batch(indices, batch_size)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Completions(TokenisedTask):
    """Prompts with completions; outputs are log-likelihoods of completions, (B, options).

    A row is a prompt with its completion, or with all options of a question. The loss of a batch is
    the mean cross-entropy over the tokens of its completions.
    """

    task: TextTask
    answers: Mapping[str, np.ndarray]
    """The index of the right option of each question, for parts of questions."""
    offsets: Mapping[str, np.ndarray]
    """Question i has options offsets[i] to offsets[i + 1] - 1 of all, for parts of questions."""
    completion: int
    """The most tokens of a completion of the training examples."""
    prompt_limit: int
    """The most tokens of a prompt for generation; a longer prompt loses its beginning."""

    @property
    def options(self) -> int:
        """The most completions that a row has."""
        return max((int(np.diff(each).max()) for each in self.offsets.values()), default=1)

    def loss(self, outputs: Array, batch: Batch) -> Array:
        return token_cross_entropy(outputs, batch)

    def collate(
        self, encoded: Encoded, indices: np.ndarray, padded_length: int, batch_size: int
    ) -> dict[str, np.ndarray]:
        """As `lora_jax.data.collate`; the weight of a row is the tokens of its completion."""
        batch = collate(encoded, indices, padded_length, batch_size)
        tokens = (batch["token_type_ids"] > 0).sum(axis=1).astype(np.float32)
        return {**batch, "weight": batch["weight"] * tokens}

    def examples(self, part: str, rows: np.ndarray) -> np.ndarray:
        """The log-likelihoods of a part's own options; rows have the most options of any part."""
        if (offsets := self.offsets.get(part)) is None:
            return rows[:, :1]
        own = np.arange(rows.shape[1]) < np.diff(offsets)[:, None]
        return option_outputs(rows[own], offsets)

    def labels(self, part: str) -> np.ndarray:
        """The indices of the right options, or the numbers of tokens of the completions."""
        if (answers := self.answers.get(part)) is None:
            return self.encoded[part].labels.astype(np.float64)
        return answers

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        labels = {part: self.labels(part) for part in outputs}
        return label_metrics.score_parts(self.task, outputs, labels)


def token_cross_entropy(outputs: Array, batch: Batch) -> Array:
    """The loss of each row for a token of its completion, (B,), from log-likelihoods (B, options).

    `batch["weight"]` is the number of tokens, so the weighted mean of rows is the mean over tokens.
    """
    return -outputs[:, 0] / jnp.maximum(batch["weight"], 1)


def _sharded(
    rows: NamedSharding,
    make: Callable[[np.ndarray, int], dict[str, np.ndarray]],
    indices: np.ndarray,
    batch_size: int,
) -> dict[str, Array]:
    """The arrays of a batch, sharded along its rows, of which each process makes its own."""

    def span(index: Any) -> tuple[int, int]:
        start, stop, _ = index[0].indices(batch_size)
        return start, stop

    def share(start: int, stop: int) -> dict[str, np.ndarray]:
        if len(own := indices[start:stop]):
            return make(own, stop - start)
        filler = make(indices[:1], stop - start)
        return {**filler, "weight": np.zeros_like(filler["weight"])}

    here = rows.addressable_devices_indices_map((batch_size,)).values()
    shares = {each: share(*each) for each in set(map(span, here))}
    like = next(iter(shares.values()))
    return {
        name: jax.make_array_from_callback(
            (batch_size, *array.shape[1:]), rows, lambda index, name=name: shares[span(index)][name]
        )
        for name, array in like.items()
    }
