"""A classifier's head apart from its encoder, whatever has been done to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_model import drawn
from flax import nnx
from make_fixtures import bert
from zoo.check import random_like

import lora_jax as lj
import variants
from experiments.exports.base_and_head import without_head
from lora_jax.models import families
from lora_jax.partition import flatten

LORA = variants.make("lora", rank=1)
VERA = variants.make("vera", rank=3)
WAYS = {
    "adapted": {"targets": {"classifier/kernel": VERA, "query/kernel": LORA, "up/kernel": VERA}},
    "adapted alone": {"targets": {"classifier/kernel": VERA, "query/kernel": LORA}},
    "trained": {"targets": {"query/kernel": VERA}, "also_train": "(classifier|norm)/.*"},
    "quantised": {"targets": {"query/kernel": VERA}, "quantize": {"classifier/kernel": lj.NF4()}},
}


@pytest.fixture(scope="module")
def model():
    content = bert.CASES["bert"][0]
    family = families.family_of(content)
    config = family.config.from_json(content)
    made = drawn(lambda: family.model(config, num_labels=3, pool="cls", rngs=nnx.Rngs(0)))
    return *lj.from_nnx(made), [each[:2] for each in bert.random_inputs(content, 0)]


@pytest.mark.parametrize("way", WAYS)
def test_the_rest_and_the_head_are_the_whole(way, model):
    """VeRA's shared arrays are numbered by variant, and still found."""
    forward, params, inputs = model
    adapted = lj.adapt(forward, **WAYS[way])
    trainable, frozen = adapted.init(jax.random.key(0), params, *inputs)
    trainable = jax.tree.map(jnp.add, trainable, random_like(trainable, 1))
    whole, _ = flatten(adapted.merge(trainable, frozen))
    rest, bare, head = without_head(trainable, frozen)
    assert {path.partition("/")[0] for path in head} == {"classifier", "pooler"}
    assert not head.keys() & {*rest["params"], *rest["adapters"], *bare.base, *bare.constants}
    again = {**rest, "params": {**rest["params"], **head}}
    found, _ = flatten(adapted.merge(again, bare))
    assert found.keys() == whole.keys()
    for path, leaf in whole.items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-6, err_msg=path)
