"""Each clause of the contract catches a variant, or a training, that breaks it."""

import jax
import pytest
from broken_variants import Mutant, dtypes, products, starts, steps, tracing
from broken_variants.dtypes import PromotesDtypes, PromotesInTheUpdate, PromotesRanks

import lora_jax as lj
import variants
from lora_jax import contract
from lora_jax.contract import model

MUTANTS = [*products.BREAKS, *dtypes.BREAKS, *starts.BREAKS, *tracing.BREAKS, *steps.BREAKS]


@pytest.mark.parametrize(
    "mutant, clause", MUTANTS, ids=lambda value: getattr(value, "__name__", value)
)
def test_broken_variants_fail_the_right_clause(mutant, clause):
    with pytest.raises(contract.ContractError, match=f"{mutant.__name__}.* breaks '{clause}'") as e:
        lj.check(mutant(), checks=[clause])
    assert "\n" not in str(e.value)


def test_every_clause_has_a_mutant():
    # No variant can break these, see below.
    untouched = {"training_leaves_the_base_alone", "disabling_gives_back_the_base"}
    known = {clause.__name__ for clause in contract.CLAUSES}
    assert {clause for _, clause in MUTANTS} == known - untouched


@pytest.mark.parametrize(
    "mutant, clause, reason",
    [
        (PromotesRanks, "products_equal_the_weight", "rank_promotion"),
        (PromotesRanks, "apply_equals_forward_of_merge", "rank_promotion"),
        (PromotesDtypes, "narrow_inputs_give_narrow_outputs", "dtype_promotion"),
        (PromotesDtypes, "narrow_models_stay_narrow", "dtype_promotion"),
        (PromotesInTheUpdate, "learns_by_training", "dtype_promotion"),
    ],
)
def test_implicit_promotion_is_refused_whatever_the_settings(mutant, clause, reason):
    """So `check` is as strict as these tests, in which variants run as in strict models."""
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        pytest.raises(contract.ContractError) as error,
    ):
        lj.check(mutant(), checks=[clause])
    message = str(error.value)
    assert f"breaks '{clause}': it promotes implicitly: " in message and reason in message
    assert "\n" not in message


class KeepsItsStartWithoutACopy(Mutant):
    def init(self, key, base):
        factors = super().init(key, base)
        factors.constants["start"] = factors.trainable["a"]
        return factors


def test_factors_that_share_an_array_with_constants_survive_donation():
    lj.check(KeepsItsStartWithoutACopy(), checks=["training_leaves_the_base_alone"])


@pytest.mark.parametrize("harm", [r"deleted \d+ arrays", r"a frozen array differs in \d+ of"])
def test_training_that_takes_a_frozen_array_is_noticed(monkeypatch, harm):
    def greedy(toy, steps):
        path, leaf = next(iter(toy.frozen.base.items()))
        if harm.startswith("deleted"):
            leaf.delete()
        else:
            toy.frozen.base[path] = leaf + 1e-9
        return toy.trainable, []

    monkeypatch.setattr(model, "_train", greedy)
    with pytest.raises(contract.ContractError, match=harm):
        lj.check(variants.make("lora"), checks=["training_leaves_the_base_alone"])


def test_a_base_that_has_changed_is_noticed(monkeypatch):
    def changed(self, trainable, frozen):
        return jax.tree.map(
            lambda leaf: leaf + 1e-9, frozen.spec.tree({**frozen.base, **trainable["params"]})
        )

    monkeypatch.setattr(lj.Adapted, "disable", changed)
    with pytest.raises(contract.ContractError, match=r"'embed' after disable differs in \d+ of"):
        lj.check(variants.make("lora"), checks=["disabling_gives_back_the_base"])
