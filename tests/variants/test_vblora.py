"""VB-LoRA by its formula; `test_peft_methods` compares it with PEFT."""

import jax
import numpy as np
import pytest

import variants
from lora_jax.variant import Base, Factors

KEY = jax.random.key(0)


def test_a_and_b_are_mixtures_of_the_vectors_with_the_largest_logits(x64):
    """Shorter sub-vectors, where the sides share no longer divisor, are the vectors' beginnings."""
    variant = variants.make("vblora", rank=2, num_vectors=5, vector_length=4, topk=2)
    random = np.random.RandomState(0)
    bank, w = random.randn(5, 4), random.randn(6, 9)
    a, b = random.randn(2, 2, 5), random.randn(2, 3, 5)  # sub-vectors of 3

    def rows(logits):
        parts = []
        for each in logits.reshape(-1, 5):
            chosen = np.argsort(each)[-2:]
            weights = np.exp(each[chosen]) / np.exp(each[chosen]).sum()
            parts.append(weights @ bank[chosen, :3])
        return np.concatenate(parts).reshape(2, -1)

    factors = Factors({"a": a, "b": b, "bank": bank}, {})
    got = variant.weight(Base(w, "io"), factors)
    np.testing.assert_allclose(got, w + rows(a).T @ rows(b), rtol=1e-12)
    shared = jax.eval_shape(lambda key: variant.init_shared(key, [(6, 9), (9, 12)], float), KEY)
    assert shared["bank"].shape == (5, 3)
    assert variant.count((6, 9)) == a.size + b.size


def test_it_starts_as_pefts_does():
    """The bank is uniform up to 0.02, and logits are normal with a deviation of 0.1."""
    variant = variants.make("vblora")
    bank = np.asarray(variant.init_shared(KEY, [(256, 512)], np.float32)["bank"])
    assert bank.shape == (256, 256) and 0.0199 < np.abs(bank).max() <= 0.02
    assert abs(bank.std() * 12**0.5 / 0.04 - 1) < 0.01
    factors = variant.init(KEY, Base(np.zeros((256, 512), np.float32), "io")).trainable
    assert (factors["a"].shape, factors["b"].shape) == ((4, 1, 256), (4, 2, 256))
    for logits in map(np.asarray, factors.values()):
        assert abs(logits.std() / 0.1 - 1) < 5 / (2 * logits.size) ** 0.5


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"topk": 0}, "topk must be an integer of at least 1, got 0"),
        ({"vector_length": 2.0}, "vector_length must be an integer of at least 1, got 2.0"),
        ({"topk": 3, "num_vectors": 2}, "topk 3 exceeds num_vectors 2"),
        ({}, r"no length of 2 to 256 divides both sides of \(4, 3\)"),
    ],
)
def test_settings_that_cannot_work_say_so(settings, said):
    with pytest.raises(ValueError, match=said):
        variants.make("vblora", **settings).validate((4, 3))
