"""Packing: every token once, and of each document what the model makes of it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from small_decoder import functional, random_decoder

from lora_jax.data.batching.packing import pack
from lora_jax.models.parts.completion import next_token_loss

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=30)


def first_fit(lengths, capacity):
    """The plain definition: the first row that has room."""
    rows = []
    for number, size in enumerate(lengths):
        fits = [row for row in rows if sum(lengths[i] for i in row) + size <= capacity]
        if fits:
            fits[0].append(number)
        else:
            rows.append([number])
    return rows


@settings(max_examples=60)
@given(lengths=LENGTHS, spare=st.integers(0, 8))
def test_every_token_once_in_the_first_row_with_room(lengths, spare):
    length, offset = 9 + spare, np.cumsum([0, *lengths])
    documents = [np.arange(offset[i], offset[i + 1]) + 1 for i in range(len(lengths))]
    shares = [np.full(len(each), i + 1) for i, each in enumerate(documents)]
    packed = pack(documents, length, shares, pad_id=0)
    rows = first_fit(lengths, length)
    assert packed.ids.shape == (len(rows), length)
    for row, members in enumerate(rows):
        found = packed.segments[row]
        assert sorted(set(found[found > 0])) == list(range(1, len(members) + 1))
        for segment, number in enumerate(members, 1):
            here = found == segment
            np.testing.assert_array_equal(packed.ids[row][here], documents[number])
            np.testing.assert_array_equal(packed.positions[row][here], range(lengths[number]))
            weights = np.full(lengths[number], number + 1.0)
            weights[0] = 0
            np.testing.assert_array_equal(packed.weights[row][here], weights)
    padding = packed.segments == 0
    assert (packed.ids[padding] == 0).all() and (packed.weights[padding] == 0).all()
    assert sorted(packed.ids[~padding]) == list(range(1, offset[-1] + 1))
    assert {each.dtype for each in packed[:3]} == {np.dtype(np.int32)}


def test_many_documents_take_no_time():
    lengths = np.random.default_rng(0).integers(1, 500, 20_000)
    packed = pack([np.zeros(n, np.int32) for n in lengths], 1024)
    assert packed.segments.astype(bool).sum() == lengths.sum()
    assert packed.segments.astype(bool).mean() > 0.95


def random_documents(sizes, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, 23, size) for size in sizes]


@pytest.mark.parametrize("name", ["mistral", "qwen2", "gpt2"])
def test_packed_documents_are_as_alone(name, x64):
    params, apply = functional(random_decoder(name, options={"param_dtype": jnp.float64}))
    documents = random_documents((5, 9, 4, 1, 7))
    packed = pack(documents, 12)
    assert len(packed.ids) == 3
    logits = np.asarray(apply(params, packed.ids, segments=packed.segments))
    width = max(map(len, documents))
    alone = np.stack([np.pad(each, (0, width - len(each))) for each in documents])
    expected = np.asarray(apply(params, alone.astype(np.int32)))
    places = [(0, 1), (1, 1), (0, 2), (0, 3), (2, 1)]
    for number, (row, segment) in enumerate(places):
        found = logits[row][packed.segments[row] == segment]
        np.testing.assert_allclose(found, expected[number, : len(documents[number])], atol=1e-12)
    if name == "mistral":  # as it is without segments
        return
    positions = {"positions": packed.positions}
    given = apply(params, packed.ids, segments=packed.segments, **positions)
    np.testing.assert_array_equal(given, logits)
    # without segments a document sees the one before it
    unmasked = np.asarray(apply(params, packed.ids, **positions))
    assert not np.allclose(unmasked[0, 5:9], logits[0, 5:9])


def test_packed_loss_is_the_mean_over_all_documents(x64):
    model = random_decoder("llama", options={"param_dtype": jnp.float64})
    documents = random_documents((5, 9, 4, 1, 7), seed=1)
    packed = pack(documents, 12)
    ids, segments = jnp.asarray(packed.ids), jnp.asarray(packed.segments)
    weights = jnp.asarray(packed.weights)

    @jax.jit
    def loss(ids, segments, weights):
        hidden = model.hidden(ids, segments=segments)
        return next_token_loss(model.logits, hidden, ids, weights, chunk=5)

    params, apply = functional(model)
    total, count = 0.0, 0
    width = max(map(len, documents))
    alone = np.stack([np.pad(each, (0, width - len(each))) for each in documents])
    logits = np.asarray(apply(params, jnp.asarray(alone, jnp.int32)))
    for each, own in zip(documents, logits, strict=True):
        exponents = np.exp(own)
        p = exponents / exponents.sum(-1, keepdims=True)
        total -= sum(np.log(p[t, each[t + 1]]) for t in range(len(each) - 1))
        count += len(each) - 1
    np.testing.assert_allclose(loss(ids, segments, weights), total / count, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 4), "there is nothing to pack"),
        (([[1], [1, 2, 3, 4, 5]], 4), r"sequence 1 has shape \(5,\); rows take 1 to 4 tokens"),
        (([[]], 4), r"sequence 0 has shape \(0,\)"),
        (([[[1]]], 4), r"sequence 0 has shape \(1, 1\)"),
        (([[1, 2]], 4, [[1.0]]), "weights must have a number for every token of every sequence"),
    ],
)
def test_what_cannot_be_packed(arguments, message):
    with pytest.raises(ValueError, match=message):
        pack(*arguments)
