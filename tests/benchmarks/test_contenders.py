"""What contenders do: training that learns, facts of compiled programs, and the same work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import models
from benchmarks.cases import CLASSES, Case
from benchmarks.contenders import hand, ours
from benchmarks.contenders.made import compiled, growth

BERT = Case(model="tiny bert", rows=4, tokens=16)
LLAMA = Case(model="tiny llama", rows=2, tokens=16)


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("case", [BERT, LLAMA])
def test_lora_by_hand_takes_our_steps(case):
    """From the same first factors, both lose the same over several steps."""
    batch = models.batch(case)
    our_step, state, our_frozen = ours.training(case)
    by_hand, (trained, moments), frozen = hand.training(case)
    flat = nnx.to_flat_state(trained)
    factors = {}
    for path, leaf in flat:
        name = "/".join(map(str, path))
        place, _, which = name.rpartition("/")
        if which in ("a", "b"):
            own = state.trainable["adapters"][f"{place}/kernel"]
            found = {key.lower(): value for key, value in own.items()}[which]
            found = found if found.shape == leaf[...].shape else found.swapaxes(-1, -2)
            factors[path] = leaf.replace(jnp.copy(found))  # A is stored as its transpose
        else:
            factors[path] = leaf
    trained = nnx.from_flat_state(factors.items())
    assert len(factors) == 2 * len(state.trainable["adapters"]) + len(state.trainable["params"])
    losses = []
    pair = (trained, moments)
    for _ in range(4):
        state, metrics = our_step(state, our_frozen, batch)
        pair, theirs = by_hand(pair, frozen, batch)
        losses.append((float(metrics["loss"]), float(theirs["loss"])))
    np.testing.assert_allclose(*np.transpose(losses), rtol=2e-5)
    assert losses[-1][0] < losses[0][0]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    "case",
    [
        Case(model="small llama", layers=2, rows=4, tokens=64, rank=64),
        pytest.param(
            Case(model="small llama", layers=2, rows=2, tokens=64, method="full"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["LoRA", "full"],
)
def test_the_operations_in_theory_are_those_that_xla_counts(case):
    """XLA counts the operations of norms and activations, too, and LoRA's first layer less."""
    step, *arguments = ours.training(case)
    _, facts = compiled(step, *arguments, models.batch(case))
    assert facts["flops"] == pytest.approx(facts["product_flops"], rel=0.1)


def test_facts_of_a_compiled_program():
    """A product of matrices, whose operations and bytes are known."""
    x, y = jnp.ones((64, 32)), jnp.ones((32, 16))
    program, facts = compiled(jax.jit(lambda x, y: x @ y), x, y)
    assert facts["flops"] == pytest.approx(2 * 64 * 32 * 16, rel=0.01)
    assert facts["product_flops"] == 2 * 64 * 32 * 16
    assert facts["held_bytes"] == 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert facts["peak_bytes"] == facts["held_bytes"] + facts["temporary_bytes"]
    assert program(x, y).shape == (64, 16)


def test_growth_is_the_most_that_work_had_and_not_what_was_there():
    kept = np.ones(2**23)  # 64 MiB, which are there before
    found = growth(lambda: [np.ones(2**22), np.ones(2**22)])  # 32 MiB, twice
    assert kept.size and (not found or 60 * 2**20 < found["growth_bytes"] < 100 * 2**20)


def test_batches_have_no_padding_and_known_labels():
    for case in (BERT, LLAMA):
        batch = models.batch(case)
        assert batch["attention_mask"].all()
        assert batch["input_ids"].max() < models.content(case)["vocab_size"]
        assert set(batch["label"]) <= set(range(CLASSES))
    assert models.batch(LLAMA)["weight"].tolist() == [15, 15]  # tokens that are predicted
