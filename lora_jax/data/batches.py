"""Batch plans: which examples make up the batch of each step, and the length they are padded to.

Sentences of similar length share a batch, padded to one of a few lengths: each length is compiled
once, and short sentences are not padded to the longest. Every plan is a pure function of lengths,
batch size, seed and epoch. The padded lengths of an epoch's batches do not depend on the seed, so
runs with different seeds have the same shapes at every step and can share one program.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lora_jax.data.examples import ArrayExamples
from lora_jax.data.split import permutation
from lora_jax.data.tokenizing.tokenize import Encoded


class PlannedBatch(NamedTuple):
    """One batch: its padded length, and the indices (int64) of at most `batch_size` examples."""

    padded_length: int
    indices: np.ndarray


def bucket_boundaries(
    lengths: Sequence[int] | np.ndarray,
    max_buckets: int = 4,
    multiple: int = 8,
    limit: int | None = None,
) -> tuple[int, ...]:
    """The padded lengths, at most `max_buckets`, that waste the fewest tokens on `lengths`.

    The result is exact, by dynamic programming. Each is a multiple of `multiple`, except that none
    exceeds `limit` (a model's number of positions). Pass the lengths of all splits together, so
    that evaluation and training have the same shapes. Raises `ValueError` for no lengths, and for a
    length below 1 or above `limit`.
    """
    lengths = np.asarray(lengths, np.int64)
    if lengths.size == 0 or lengths.min() < 1:
        raise ValueError("bucket boundaries need one length or more, each at least 1")
    if max_buckets < 1 or multiple < 1:
        raise ValueError(f"max_buckets {max_buckets} and multiple {multiple} must be at least 1")
    if limit is not None and lengths.max() > limit:
        raise ValueError(f"a length of {lengths.max()} exceeds the limit of {limit}")
    padded = -(-lengths // multiple) * multiple
    if limit is not None:
        padded = np.minimum(padded, limit)
    sizes, counts = np.unique(padded, return_counts=True)

    # cost[i, j]: tokens of a bucket that holds sizes i to j, all padded to size j
    below = np.concatenate([[0], np.cumsum(counts)])
    cost = sizes * (below[1:] - below[:-1, None])
    impossible = np.iinfo(np.int64).max // 4
    cost[np.tril_indices_from(cost, -1)] = impossible

    best = cost[0]  # fewest tokens of sizes 0 to j with the buckets so far
    starts = []  # for each further bucket: where it starts if it ends at j
    for _ in range(min(max_buckets, len(sizes)) - 1):
        split = np.full_like(cost, impossible)
        split[1:] = np.minimum(best[:-1, None] + cost[1:], impossible)
        starts.append(split.argmin(0))
        best = split.min(0)

    end = len(sizes) - 1
    boundaries = [int(sizes[end])]
    for start in reversed(starts):
        end = start[end] - 1
        boundaries.append(int(sizes[end]))
    return tuple(reversed(boundaries))


def plan_epoch(
    lengths: Sequence[int] | np.ndarray,
    batch_size: int,
    boundaries: Sequence[int],
    seed: int,
    epoch: int,
) -> list[PlannedBatch]:
    """The `ceil(len(lengths) / batch_size)` batches of one epoch: every example once.

    Examples that do not fill a batch of their bucket move to the next longer bucket and come first
    there. All batches but one are therefore full; `collate` fills that one with rows of weight 0.
    Seed and epoch shuffle the examples; the epoch alone shuffles the order of padded lengths.
    Raises `ValueError` for a length above the last boundary.
    """
    order = permutation(len(lengths), seed, epoch)
    batches = _fill(np.asarray(lengths, np.int64), order, batch_size, boundaries)
    return [batches[i] for i in permutation(len(batches), epoch)]


def eval_plan(
    lengths: Sequence[int] | np.ndarray, batch_size: int, boundaries: Sequence[int]
) -> list[PlannedBatch]:
    """The batches of one pass without shuffling, shortest first: every example exactly once.

    Filled as in `plan_epoch`; `in_order` puts a model's outputs back into the order of the data.
    """
    lengths = np.asarray(lengths, np.int64)
    return _fill(lengths, np.arange(len(lengths)), batch_size, boundaries)


def in_order(plan: Sequence[PlannedBatch], outputs: Sequence[np.ndarray]) -> np.ndarray:
    """Join the outputs (B, ...) of a plan's batches into one array (n, ...) in the data's order.

    Rows that only fill up a batch are left out.
    """
    indices = np.concatenate([batch.indices for batch in plan])
    values = [
        np.asarray(output)[: len(batch.indices)]
        for batch, output in zip(plan, outputs, strict=True)
    ]
    return np.concatenate(values)[np.argsort(indices)]


@dataclasses.dataclass(frozen=True, eq=False)
class BatchPlan:
    """The training batches of all steps; steps are counted from 0 over all epochs.

    The step alone gives the position in the data: a run resumes at step k with `start(k)`.
    """

    lengths: np.ndarray
    batch_size: int
    boundaries: tuple[int, ...]
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch of a step and its place in that epoch."""
        return divmod(step, self.steps_per_epoch)

    def batch(self, step: int) -> PlannedBatch:
        """The batch of a step. This plans the whole epoch: for many steps, iterate `start`."""
        return next(self.start(step))

    def start(self, step: int = 0) -> Iterator[PlannedBatch]:
        """Yield the batches from a step on, without end."""
        epoch, place = self.locate(step)
        while True:
            plan = plan_epoch(self.lengths, self.batch_size, self.boundaries, self.seed, epoch)
            yield from plan[place:]
            epoch, place = epoch + 1, 0


def collate(
    encoded: Encoded, indices: np.ndarray, padded_length: int, batch_size: int
) -> dict[str, np.ndarray]:
    """The arrays of one batch; B = `batch_size`, T = `padded_length`.

    `input_ids`, `attention_mask` and `token_type_ids` are (B, T) int32. `label` is (B,), int32 for
    classes and float32 for a regression; examples without labels have none. `weight` is (B,)
    float32: 1 for an example, 0 for a row that only fills the batch. Such a row repeats the batch's
    first example. If it were empty, mean pooling would give 0/0, and NaN times 0 is still NaN.
    """
    indices = np.asarray(indices, np.int64)
    if not 0 < len(indices) <= batch_size:
        raise ValueError(f"{len(indices)} examples do not make a batch of 1 to {batch_size}")
    rows = np.concatenate([indices, np.repeat(indices[:1], batch_size - len(indices))])
    lengths = encoded.offsets[rows + 1] - encoded.offsets[rows]
    if lengths.max() > padded_length:
        raise ValueError(f"{lengths.max()} tokens do not fit in a padded length of {padded_length}")

    positions = np.arange(padded_length)
    mask = positions < lengths[:, None]
    tokens = (encoded.offsets[rows][:, None] + positions)[mask]
    input_ids = np.full(mask.shape, encoded.pad_id, np.int32)
    input_ids[mask] = encoded.ids[tokens]
    token_type_ids = np.zeros(mask.shape, np.int32)
    token_type_ids[mask] = encoded.type_ids[tokens]
    batch = {
        "input_ids": input_ids,
        "attention_mask": mask.astype(np.int32),
        "token_type_ids": token_type_ids,
        "weight": (np.arange(batch_size) < len(indices)).astype(np.float32),
    }
    if len(encoded.labels):
        label_dtype = np.int32 if encoded.labels.dtype.kind == "i" else np.float32
        batch["label"] = encoded.labels[rows].astype(label_dtype)
    return batch


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedArrays(Encoded):
    """Arrays in the place of tokens: each example has the length 1, so nothing is padded."""

    arrays: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, examples: ArrayExamples) -> "EncodedArrays":
        count = len(examples)
        ids, offsets = np.zeros(count, np.int32), np.arange(count + 1, dtype=np.int64)
        labels = np.zeros(0) if examples.labels is None else examples.labels
        return cls(ids, ids, offsets, labels, 0, 0, examples.arrays)

    def batch(self, indices: np.ndarray, batch_size: int) -> dict[str, np.ndarray]:
        """The arrays of a batch, with `label` and `weight` as `collate` has them."""
        made = collate(self, indices, 1, batch_size)
        rows = np.concatenate([indices, np.repeat(indices[:1], batch_size - len(indices))])
        arrays = {name: array[rows] for name, array in self.arrays.items()}
        return arrays | {name: made[name] for name in ("label", "weight") if name in made}


def _fill(
    lengths: np.ndarray, order: np.ndarray, batch_size: int, boundaries: Sequence[int]
) -> list[PlannedBatch]:
    """Make full batches bucket by bucket; leftovers move to the next one. The last may be short.

    Leftovers come first in the next bucket, so the shapes depend only on the number of examples in
    each bucket, not on their order.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be at least 1")
    if list(boundaries) != sorted(set(boundaries)):
        raise ValueError(f"bucket boundaries {tuple(boundaries)} do not increase")
    if len(lengths) == 0 or len(boundaries) == 0:
        raise ValueError("a plan needs at least one example and one bucket boundary")
    if lengths.max() > boundaries[-1]:
        raise ValueError(
            f"a length of {lengths.max()} exceeds the longest bucket, {boundaries[-1]}"
        )
    buckets = np.searchsorted(boundaries, lengths)[order]
    boundaries = boundaries[: buckets.max() + 1]
    batches = []
    waiting = order[:0]
    for bucket, padded_length in enumerate(boundaries):
        waiting = np.concatenate([waiting, order[buckets == bucket]])
        full = len(waiting) // batch_size * batch_size
        for start in range(0, full, batch_size):
            batches.append(PlannedBatch(padded_length, waiting[start : start + batch_size]))
        waiting = waiting[full:]
    if len(waiting):
        batches.append(PlannedBatch(boundaries[-1], waiting))
    return batches


def branched(encoded: Encoded, offsets: np.ndarray) -> Encoded:
    """Join the rows of `encode_options` by question: its prompt, then its options one by one.

    `type_ids` are 0 in the prompt and k in option k, from 1 on, as
    `lora_jax.models.parts.completion.completion_likelihood` takes them. `labels` are the number of
    tokens of all options of a question, int64. If truncation left prompts of different lengths in a
    question's rows, the shortest is used.

    Args:
      offsets: question i has rows `offsets[i]` to `offsets[i + 1]` of `encoded`.
    """
    rows, types = [], []
    for first, end in itertools.pairwise(offsets):
        parts = [_row(encoded, index) for index in range(first, end)]
        stem = min((ids[kinds == 0] for ids, kinds in parts), key=len)
        options = [ids[kinds == 1] for ids, kinds in parts]
        rows.append(np.concatenate([stem, *options]))
        lengths = [len(stem), *map(len, options)]
        types.append(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths))
    return dataclasses.replace(
        encoded,
        ids=np.concatenate(rows),
        type_ids=np.concatenate(types),
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        labels=np.array([int((each > 0).sum()) for each in types], np.int64),
    )


def _row(encoded: Encoded, index: int) -> tuple[np.ndarray, np.ndarray]:
    part = slice(encoded.offsets[index], encoded.offsets[index + 1])
    return encoded.ids[part], encoded.type_ids[part]
