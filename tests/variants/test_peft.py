"""LoRA equal to Hugging Face PEFT's, on the fixtures that `make_fixtures/peft_lora.py` writes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from make_fixtures.bert import CASES as BERT_CASES, random_inputs
from make_fixtures.peft_lora import CASES, FIXTURES, SELECTED
from peft_net import assert_agrees, group, to_factors
from published_names import torch_names

import lora_jax as lj
from lora_jax.models import families
from lora_jax.variant import Base
from variants.lora import LoRA

FACTS = json.loads((FIXTURES / "peft_facts.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_outputs_gradients_merged_weights_and_training(case, x64):
    assert_agrees(np.load(FIXTURES / f"peft_{case}.npz"), CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_saved_tensors_are_the_parameters(case, x64):
    arrays = np.load(FIXTURES / f"peft_{case}.npz")
    saved = to_factors(group(arrays, "ckpt"))
    for path, factors in to_factors(group(arrays, "param")).items():
        for name, factor in factors.items():
            np.testing.assert_array_equal(saved[path][name], factor)


@pytest.mark.parametrize("start", FACTS["starts"], ids=lambda s: f"{s['initialization']}-{s['in']}")
def test_initialisations_have_pefts_distribution(start):
    variant = LoRA(rank=start["rank"], initialization=start["initialization"])
    base = Base(np.zeros((start["in"], start["out"]), np.float32), "io")
    trainable = jax.jit(lambda key: variant.init(key, base).trainable)(jax.random.key(0))
    a = np.asarray(trainable["a"])
    assert abs(a.std() / start["std"] - 1) < 5 / np.sqrt(a.size)
    if start["initialization"] == "kaiming_uniform":  # both close to one bound
        assert abs(np.abs(a).max() / start["max"] - 1) < 0.01
    assert start["b_is_zero"] and not np.asarray(trainable["b"]).any()


@pytest.mark.parametrize("family", SELECTED)
def test_all_linear_selects_what_peft_does(family):
    """Beside PEFT's head, which it trains in full: RoBERTa's has two layers, the pooler in ours."""
    settings, num_labels = BERT_CASES[family]
    config = families.read(settings)
    build = families.family_of(config).model
    model = nnx.eval_shape(lambda: build(config, num_labels, rngs=nnx.Rngs(0)))
    head = "classifier/.*" if family == "bert" else "(pooler|classifier)/.*"
    function, params = lj.from_nnx(model)
    ids, mask, _ = map(jnp.asarray, random_inputs(settings, 0))
    adapted = lj.adapt(function, LoRA(rank=2), "all-linear", also_train=head)
    trainable, _ = jax.eval_shape(adapted.init, jax.random.key(0), params, ids, mask)
    ours = [name for path in trainable["adapters"] for name in torch_names(path, config)]
    theirs = [f"{module}.weight" for module in FACTS["all_linear"][family]]
    assert sorted(ours) == sorted(theirs)
