"""Buckets, plans and batches: nothing lost, nothing twice, decided by their inputs alone."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, strategies as st
from one_line import refuses

from lora_jax.data import (
    BatchPlan,
    Encoded,
    bucket_boundaries,
    collate,
    eval_plan,
    in_order,
    plan_epoch,
)

some_lengths = st.lists(st.integers(1, 100), min_size=1, max_size=120)
seeds = st.integers(0, 2**64)
batch_sizes = st.integers(1, 40)
max_buckets = st.integers(1, 5)


def padded_tokens(lengths, boundaries):
    """Tokens if every example is padded to the shortest boundary that holds it."""
    return sum(min(b for b in boundaries if b >= length) for length in lengths)


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=30),
    st.integers(1, 4),
    st.sampled_from([1, 3, 8, 16]),
)
def test_boundaries_are_the_best_of_all(lengths, buckets, multiple):
    boundaries = bucket_boundaries(lengths, buckets, multiple)
    assert len(boundaries) <= buckets
    assert list(boundaries) == sorted(set(boundaries))
    assert all(type(b) is int and b % multiple == 0 for b in boundaries)
    longest = -(-max(lengths) // multiple) * multiple
    assert boundaries[-1] == longest
    sizes = sorted({-(-n // multiple) * multiple for n in lengths} - {longest})
    best = min(
        padded_tokens(lengths, [*chosen, longest])
        for count in range(min(buckets, len(sizes) + 1))
        for chosen in itertools.combinations(sizes, count)
    )
    assert padded_tokens(lengths, boundaries) == best


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (([3, 8, 9, 30], 4, 8), (8, 16, 32)),
        (([5] * 90 + [20] * 9 + [60], 2, 8), (8, 64)),
        (([5] * 50 + [20] * 49 + [60], 2, 8), (24, 64)),
        (([512], 3, 8), (512,)),
        (([3, 49, 50], 3, 8, 50), (8, 50)),  # none exceeds the limit
        (([3, 17], 3, 8, 50), (8, 24)),
        (([51], 3, 8, 50), "a length of 51 exceeds the limit of 50"),
        (([],), "need one length or more"),
        (([3, 0],), "each at least 1"),
        (([3], 0), "max_buckets 0"),
        (([3], 2, 0), "multiple 0"),
    ],
)
def test_boundaries_by_hand(arguments, expected):
    if isinstance(expected, str):
        refuses(expected, bucket_boundaries, *arguments)
    else:
        assert bucket_boundaries(*arguments) == expected


@given(some_lengths, batch_sizes, max_buckets, seeds, st.integers(0, 1000))
def test_an_epoch_has_each_example_once(lengths, batch_size, buckets, seed, epoch):
    boundaries = bucket_boundaries(lengths, buckets)
    for plan in (
        plan_epoch(lengths, batch_size, boundaries, seed, epoch),
        eval_plan(lengths, batch_size, boundaries),
    ):
        indices = np.concatenate([batch.indices for batch in plan])
        assert sorted(indices) == list(range(len(lengths)))
        assert len(plan) == -(-len(lengths) // batch_size)  # so at most one batch is not full
        for padded_length, indices in plan:
            assert padded_length in boundaries
            assert 0 < len(indices) <= batch_size
            assert max(lengths[i] for i in indices) <= padded_length


@given(some_lengths, batch_sizes, max_buckets, seeds, seeds, st.integers(0, 1000))
def test_shapes_do_not_depend_on_the_seed(lengths, batch_size, buckets, seed, other, epoch):
    boundaries = bucket_boundaries(lengths, buckets)

    def shapes(seed):
        plan = plan_epoch(lengths, batch_size, boundaries, seed, epoch)
        return [(batch.padded_length, len(batch.indices)) for batch in plan]

    assert shapes(seed) == shapes(other)


def test_only_what_does_not_fill_a_batch_moves_up():
    lengths = np.array([4] * 5 + [12] * 4 + [20] * 3)
    plan = plan_epoch(lengths, 3, (8, 16, 24), seed=1, epoch=0)
    held = sorted((b.padded_length, lengths[b.indices].tolist()) for b in plan)
    assert held == [(8, [4, 4, 4]), (16, [4, 4, 12]), (16, [12, 12, 12]), (24, [20, 20, 20])]


def test_unused_long_buckets_are_not_padded_to():
    plan = eval_plan([5, 6, 7], 2, (8, 16, 64))
    assert [(b.padded_length, b.indices.tolist()) for b in plan] == [(8, [0, 1]), (8, [2])]


def test_seed_and_epoch_both_shuffle():
    lengths = np.arange(1000) % 40 + 1
    boundaries = bucket_boundaries(lengths)

    def order(seed, epoch):
        return np.concatenate([b.indices for b in plan_epoch(lengths, 16, boundaries, seed, epoch)])

    def shapes(epoch):
        return [b.padded_length for b in plan_epoch(lengths, 16, boundaries, 0, epoch)]

    orders = [order(0, 0), order(1, 0), order(0, 1), order(1, 1)]
    for one, other in itertools.combinations(orders, 2):
        assert np.mean(one == other) < 0.05
    assert shapes(0) != shapes(1)
    assert sorted(shapes(0)) == sorted(shapes(1))
    assert shapes(0) != sorted(shapes(0))


def test_the_plan_is_the_same_everywhere():
    lengths = np.arange(2000) * 7919 % 61 + 3
    boundaries = bucket_boundaries(lengths, 4)
    digest = hashlib.sha256()
    for seed, epoch in [(0, 0), (0, 1), (7, 0), (2**40, 3)]:
        for padded_length, indices in plan_epoch(lengths, 32, boundaries, seed, epoch):
            digest.update(np.array([padded_length, *indices], "<i8").tobytes())
    assert digest.hexdigest() == "c416f81753032208166c135a1f519058211dc8dfc682a6c9ca495ca529684825"


def test_the_step_alone_locates_a_batch():
    lengths = np.arange(50) % 30 + 1
    boundaries = bucket_boundaries(lengths, 3)
    plan = BatchPlan(lengths, 8, boundaries, seed=3)
    assert plan.steps_per_epoch == 7
    assert [plan.locate(step) for step in (0, 6, 7, 20)] == [(0, 0), (0, 6), (1, 0), (2, 6)]
    epochs = [plan_epoch(lengths, 8, boundaries, 3, epoch) for epoch in range(4)]
    for start in (0, 3, 7, 13):
        batches = list(itertools.islice(plan.start(start), 12))
        for step, batch in enumerate(batches, start):
            expected = epochs[step // 7][step % 7]
            for found in (batch, plan.batch(step)):
                assert found.padded_length == expected.padded_length
                np.testing.assert_array_equal(found.indices, expected.indices)


def encoded(rows, labels, pad_id=9):
    return Encoded(
        ids=np.concatenate(rows).astype(np.int32),
        type_ids=np.concatenate([np.arange(len(row)) % 2 for row in rows]).astype(np.int32),
        offsets=np.cumsum([0] + [len(row) for row in rows]),
        labels=np.array(labels),
        pad_id=pad_id,
        truncated=0,
    )


def test_collate_by_hand():
    data = encoded([[1, 2, 3], [4], [5, 6]], [2, 0, 1])
    batch = collate(data, np.array([2, 0]), padded_length=4, batch_size=3)
    expected = {
        "input_ids": [[5, 6, 9, 9], [1, 2, 3, 9], [5, 6, 9, 9]],
        "attention_mask": [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]],
        "token_type_ids": [[0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]],
        "label": [1, 2, 1],
        "weight": [1, 1, 0],
    }
    assert batch.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(batch[name], values, err_msg=name)
        assert batch[name].dtype == (np.float32 if name == "weight" else np.int32)
    real_valued = collate(encoded([[1], [2]], [0.5, 4.0]), [1], 4, 1)["label"]
    assert (real_valued.dtype, real_valued.tolist()) == (np.float32, [4.0])


@given(some_lengths, batch_sizes, max_buckets)
def test_the_batches_hold_the_data_which_in_order_restores(lengths, batch_size, buckets):
    rng = np.random.default_rng(len(lengths))
    rows = [rng.integers(10, 1000, length) for length in lengths]
    data = encoded(rows, np.arange(len(rows)))
    plan, labels = eval_plan(lengths, batch_size, bucket_boundaries(lengths, buckets)), []
    for padded_length, indices in plan:
        batch = collate(data, indices, padded_length, batch_size)
        assert batch["input_ids"].shape == (batch_size, padded_length)
        assert (batch["attention_mask"].sum(1) > 0).all()
        assert (batch["input_ids"][batch["attention_mask"] == 0] == data.pad_id).all()
        for index, ids, mask in zip(
            indices, batch["input_ids"], batch["attention_mask"], strict=False
        ):
            np.testing.assert_array_equal(ids[mask == 1], rows[index])
        assert batch["weight"].tolist() == [1] * len(indices) + [0] * (batch_size - len(indices))
        labels.append(np.where(batch["weight"] > 0, batch["label"], -1))
    np.testing.assert_array_equal(in_order(plan, labels), np.arange(len(rows)))


def planned(lengths, batch_size, boundaries):
    return plan_epoch(lengths, batch_size, boundaries, 0, 0)


def collated(indices, padded_length):
    return collate(encoded([[1, 2, 3], [4]], [0, 1]), indices, padded_length, batch_size=2)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        *[
            (make, *case)
            for make in (eval_plan, planned)
            for case in (
                (([5], 0, (8,)), "batch_size 0"),
                (([], 2, (8,)), "at least one example"),
                (([5], 2, ()), "one bucket boundary"),
                (([5], 2, (16, 8)), "do not increase"),
                (([5, 9], 2, (4, 8)), "a length of 9 exceeds the longest bucket, 8"),
            )
        ],
        (collated, ([], 4), "0 examples do not make a batch of 1 to 2"),
        (collated, ([0, 1, 0], 4), "3 examples do not make a batch of 1 to 2"),
        (collated, ([0], 2), "3 tokens do not fit in a padded length of 2"),
    ],
)
def test_bad_plans_and_batches_are_refused(make, arguments, message):
    refuses(message, make, *arguments)
