"""Methods equal to PEFT's, on the fixtures of `make_fixtures/peft_lora.py` and `peft_methods.py`.

Where PEFT differs from the papers or from here, a test names the difference and has both.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from make_fixtures.bert import CASES as BERT_CASES, random_inputs
from make_fixtures.peft_lora import CASES as LORA_CASES, RATE, SELECTED
from make_fixtures.peft_methods import CASES, DROPOUT_CASES, FIXTURES, statistics, takes_start
from peft_net import assert_agrees, group, to_factors, trainable_of
from peft_special import (
    assert_agrees_in_training,
    assert_disabling_differs,
    assert_dora_drops_less,
    assert_ia3_scales_biases,
    assert_starts_alike,
    fast_pissa_errors,
    optimiser_errors,
)
from published_names import torch_names

import lora_jax as lj
from lora_jax.methods import initialization
from lora_jax.models import families
from lora_jax.partition import flatten
from lora_jax.variant import Base
from variants.lora import LoRA

FACTS = json.loads((FIXTURES / "peft_methods.json").read_text())
LORA_FACTS = json.loads((FIXTURES / "peft_facts.json").read_text())
ELSEWHERE = {
    *(case for case, config in CASES.items() if "optimiser" in config),  # they train alike, below
    *("dora", "pissa", "vera", "hira"),  # in `..._everywhere`
}
DRAWN = ["lora_fa", "pissa_fast", "loha", "hra", "vblora"]
"""Starts with something random in all of their numbers, or zero in another of them (LoHa)."""


def load(case):
    return np.load(FIXTURES / f"peft_{case}.npz")


@pytest.mark.parametrize("case", [case for case in CASES if case not in ELSEWHERE])
def test_outputs_gradients_merged_weights_and_training(case, x64):
    """And, where nothing is random, starts."""
    begun = assert_agrees(load(case), CASES[case])
    if case not in DRAWN and not takes_start(CASES[case]):
        assert_starts_alike(load(case), *begun)


@pytest.mark.parametrize("case", LORA_CASES)
def test_lora_is_pefts(case, x64):
    assert_agrees(load(case), LORA_CASES[case])


@pytest.mark.parametrize("case", [*CASES, *LORA_CASES])
def test_saved_tensors_are_the_parameters(case, x64):
    arrays = load(case)
    fixed = ("base_model.vera", "base_model.randlora")
    saved = {n: x for n, x in group(arrays, "ckpt").items() if not n.startswith(fixed)}
    for path, leaf in flatten(trainable_of(group(arrays, "param")))[0].items():
        np.testing.assert_array_equal(flatten(trainable_of(saved))[0][path], leaf)


@pytest.mark.parametrize("case", [case for case in CASES if takes_start(CASES[case])])
def test_peft_does_not_give_the_base_back(case, x64):
    begun = assert_disabling_differs(load(case), CASES[case])
    if case not in DRAWN:
        assert_starts_alike(load(case), *begun)


def test_peft_scales_ia3s_biases(x64):
    assert_ia3_scales_biases(load("ia3_bias"), CASES["ia3_bias"] | {"biases": False})


# -- LoRA+ and Riemannian LoRA ---------------------------------------------------------------------


@pytest.mark.parametrize("case", ["lora_plus_sgd", "lora_plus_adamw", "riemannian"])
def test_pefts_optimisers_train_alike(case, x64, standard_promotion):
    errors = optimiser_errors(load(case), CASES[case])
    assert max(jax.tree.leaves(errors)) < 1e-10


def test_peft_gives_the_magnitudes_of_dora_bs_rate(x64):
    """The difference: PEFT, as LoRA+'s authors, counts every vector as a B; here only B is one."""
    arrays, config = load("lora_plus_dora"), CASES["lora_plus_dora"]
    ratio = config["optimiser"]["ratio"]
    rates = {path: {"b": ratio, "m": ratio} for path in to_factors(group(arrays, "param"))}
    assert max(jax.tree.leaves(optimiser_errors(arrays, config, rates))) < 1e-10
    ours = {path: {"b": ratio} for path in rates}
    assert min(each["m"] for each in optimiser_errors(arrays, config, ours).values()) > 1e-3


def test_peft_hardly_trains_embeddings_with_lora_plus(x64):
    """The difference: PEFT gives an embedding's A and B the rate 1e-6, whatever the ratio."""
    arrays, config = load("lora_plus_embedding"), CASES["lora_plus_embedding"]
    ratio, slow = config["optimiser"]["ratio"], 1e-6 / RATE
    rates = {"embed.weight": {"a": slow, "b": slow}, "l1.weight": {"b": ratio}}
    assert max(jax.tree.leaves(optimiser_errors(arrays, config, rates))) < 1e-10
    assert min(optimiser_errors(arrays, config)["embed.weight"].values()) > 1e-3


# -- dropout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in DROPOUT_CASES if case != "dora"])
def test_dropout_of_the_same_entries(case, x64):
    assert_agrees_in_training(load(f"{case}_dropout"), DROPOUT_CASES[case])


def test_peft_drops_a_part_of_doras_base_term(x64):
    assert_dora_drops_less(load("dora_dropout"), DROPOUT_CASES["dora"])


# -- starts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", FACTS["orthogonal"], ids=lambda each: f"rank{each['rank']}")
def test_orthogonal_starts_have_pefts_distribution(theirs):
    """Both halves random of rank r / 2, and no effect at the start."""
    base, rank = Base(np.zeros((theirs["in"], theirs["out"]), np.float32), "io"), theirs["rank"]
    start = jax.jit(lambda key: initialization.orthogonal(key, base, rank, 1.0))(jax.random.key(0))
    ours = statistics(*map(np.asarray, start))
    for name in ("a", "b"):
        assert ours[f"rank_{name}"] == theirs[f"rank_{name}"] == theirs["rank"] // 2
        size = theirs["rank"] / 2 * theirs["in" if name == "a" else "out"]  # degrees of freedom
        assert abs(ours[f"std_{name}"] / theirs[f"std_{name}"] - 1) < 5 / np.sqrt(size)
    assert max(ours["product"], theirs["product"]) < 1e-6


def test_pefts_fast_pissa_is_further_from_the_best(x64):
    """The difference: PEFT's randomised SVD follows as many directions as there are ranks.

    Here it follows 8 more, as Halko et al. advise; in a matrix that small, that is all of them.
    """
    for best, ours, theirs in fast_pissa_errors(load("pissa_fast"), CASES["pissa_fast"]):
        assert abs(ours - best) < 1e-10
        assert theirs > best + 1e-3


# -- LoRA ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start", LORA_FACTS["starts"], ids=lambda s: f"{s['initialization']}-{s['in']}"
)
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
    theirs = [f"{module}.weight" for module in LORA_FACTS["all_linear"][family]]
    assert sorted(ours) == sorted(theirs)
