"""Packed rows: of each document what the model makes of it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_rows import pack
from small_decoder import functional, random_decoder

from lora_jax.models.parts.completion import next_token_loss

SIZES = (5, 9, 4, 1, 7)
ROWS = ((0, 2, 3), (1,), (4,))


def packed_and_alone(seed=0):
    """Documents, packed in three rows, and one by one in padded rows."""
    random = np.random.default_rng(seed)
    documents = [random.integers(0, 23, size) for size in SIZES]
    alone = np.stack([np.pad(each, (0, max(SIZES) - len(each))) for each in documents])
    return documents, pack(documents, ROWS, 12), alone.astype(np.int32)


@pytest.mark.parametrize("name", ["mistral", "qwen2", "gpt2"])
def test_packed_documents_are_as_alone(name, x64):
    params, apply = functional(random_decoder(name, options={"param_dtype": jnp.float64}))
    documents, packed, alone = packed_and_alone()
    logits = np.asarray(apply(params, packed.ids, segments=packed.segments))
    expected = np.asarray(apply(params, alone))
    for row, members in enumerate(ROWS):
        for segment, number in enumerate(members, 1):
            found = logits[row][packed.segments[row] == segment]
            own = expected[number, : len(documents[number])]
            np.testing.assert_allclose(found, own, atol=1e-12)
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
    documents, packed, alone = packed_and_alone(seed=1)

    @jax.jit
    def loss(ids, segments, weights):
        hidden = model.hidden(ids, segments=segments)
        return next_token_loss(model.logits, hidden, ids, weights, chunk=5)

    params, apply = functional(model)
    total, count = 0.0, 0
    logits = np.asarray(apply(params, alone))
    for each, own in zip(documents, logits, strict=True):
        exponents = np.exp(own)
        p = exponents / exponents.sum(-1, keepdims=True)
        total -= sum(np.log(p[t, each[t + 1]]) for t in range(len(each) - 1))
        count += len(each) - 1
    found = loss(*map(jnp.asarray, (packed.ids, packed.segments, packed.weights)))
    np.testing.assert_allclose(found, total / count, rtol=1e-12)
