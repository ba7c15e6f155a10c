"""The contract over every variant, and over broken ones: a clause that cannot fail says nothing."""

import dataclasses
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import own_code
import pytest
from jax.experimental.custom_partitioning import custom_partitioning
from tied_method import Tied

import lora_jax as lj
import variants
from lora_jax import contract
from lora_jax.contract import matrix, timing, training
from lora_jax.methods.products import dropout
from lora_jax.variant import Base
from variants.lora import LoRA

FAMILIES = (
    contract.OF_A_MATRIX,
    contract.OF_A_MODEL,
    contract.OF_TRAINING,
    contract.OF_COMPOSITIONS,
)


def cases():
    """All clauses for whatever has code of its own; for its settings one family of clauses each.

    Which family rotates; how all of these start is checked of each.
    """
    settings = 0
    for name in variants.names():
        variant, kind = variants.make(name), variants.find(name)
        chosen = contract.clauses(variant)
        if not own_code.has_code(kind):
            family = FAMILIES[(settings - 1) % len(FAMILIES)]
            chosen = dict.fromkeys((matrix.starts_at_the_base, *family))
            settings += 1
        yield from (pytest.param(variant, each, id=f"{name}-{each.__name__}") for each in chosen)


CASES = list(cases())


@pytest.mark.parametrize("variant, clause", CASES)
def test_variants_keep_the_contract(variant, clause):
    clause(variant)


def test_all_clauses_are_for_all_code():
    """So a new variant with a method of its own gets them; others have no function of their own."""
    ran = {name: {c.id.split("-")[1] for c in CASES if c.id.startswith(f"{name}-")}
           for name in variants.names()}  # fmt: skip
    some = set(ran) - set(own_code.names())
    for name in set(ran) - some:
        assert ran[name] == {each.__name__ for each in contract.clauses(variants.make(name))}
    for kind in map(variants.find, some):
        inherited = dict(inspect.getmembers(kind.__base__, inspect.isfunction))
        own = {name for name, each in inherited.items() if getattr(kind, name) is not each}
        assert {name for name in own if not name.startswith("__")} <= {"validate"}
    assert set.union(*(ran[name] for name in some)) == {c.__name__ for c in contract.CLAUSES}
    assert not own_code.has_code(Mutant) and own_code.has_code(DotForgetsTheScale)


@pytest.mark.parametrize("scale, alpha", [("alpha/sqrt(rank)", 16), ("alpha/rank", 64)])
def test_large_scales_are_no_breach(scale, alpha):
    """Rounding errors grow with them, in right variants too."""
    variant = variants.make("lora", scale=scale, alpha=alpha)
    lj.check(variant, checks=["narrow_models_stay_narrow"])


@pytest.mark.parametrize("clause", [*contract.OF_A_MATRIX, *contract.OF_A_MODEL[:2]])
def test_settings_keep_the_contract(clause):
    settings = {"initialization": "gaussian", "scale": "alpha/sqrt(rank)"}
    clause(variants.make("lora", rank=4, max_rank=6, dropout=0.3, **settings))


# -- mutants: LoRA with one thing wrong, and the clause that must say so -----------------------


@dataclasses.dataclass(frozen=True)
class Mutant(LoRA):
    rank: int = 2


class DotForgetsTheScale(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        return base.dot(x) + (x @ factors.trainable["a"].T) @ factors.trainable["b"]


class DotForgetsTheBase(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        return super().dot(x, base, factors) - base.dot(x)


class TransposedDotIsTheBase(Mutant):
    def dot_t(self, x, base, factors):
        return base.dot_t(x)


class TakesTheRowBefore(Mutant):
    def take(self, rows, base, factors):
        return super().take(jnp.maximum(rows - 1, 0), base, factors)


class IsTwiceTheLoRAThatItSays(Mutant):
    def as_lora(self, base, factors):
        a, b = super().as_lora(base, factors)
        return a, b / 2


class MakesARowOfNone(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        y = super().dot(x, base, factors, dropout_key=dropout_key)
        return y if y.size else jnp.zeros((1, *y.shape[1:]), y.dtype)


class DotIsNotANumber(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        return super().dot(x, base, factors) * jnp.nan


class DotDetachesA(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        detached = {**factors.trainable, "a": jax.lax.stop_gradient(factors.trainable["a"])}
        return super().dot(x, base, factors._replace(trainable=detached))


class NothingLearns(Mutant):
    def scaled_b(self, factors):
        return jax.lax.stop_gradient(super().scaled_b(factors))

    def low_rank_factors(self, factors, dtype):
        return jax.tree.map(jax.lax.stop_gradient, super().low_rank_factors(factors, dtype))


class CountsOneMore(Mutant):
    def count(self, shape):
        return super().count(shape) + 1


class CountsOneSideTwice(Mutant):
    def count(self, shape):
        return 2 * self.rank * shape[0]


class CountsSquaresWrongly(Mutant):
    def count(self, shape):
        return super().count(shape) + (shape[0] == shape[1])


class TrainsForNothing(Mutant):
    def init(self, key, base):
        factors = super().init(key, base)
        factors.trainable["idle"] = jnp.ones(3, base.dtype)
        return factors

    def count(self, shape):
        return super().count(shape) + 3


class FactorsAsNarrowAsTheBase(Mutant):
    def init(self, key, base):
        return jax.tree.map(lambda leaf: leaf.astype(base.dtype), super().init(key, base))


class OutputsAreFloat32(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        y = super().dot(x, base, factors)
        return y.astype(jnp.float32) if y.dtype == jnp.bfloat16 else y


class WeightIsNarrow(Mutant):
    def weight(self, base, factors):
        return super().weight(base, factors).astype(base.dtype)


class RoundsTheFactors(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        narrow = {n: f.astype(jnp.float8_e4m3fn) for n, f in factors.trainable.items()}
        rounded = {n: f.astype(factors.trainable[n].dtype) for n, f in narrow.items()}
        return super().dot(x, base, factors._replace(trainable=rounded), dropout_key=dropout_key)


class StartsElsewhere(Mutant):
    def init(self, key, base):
        factors = super().init(key, base)
        factors.trainable["b"] += 0.01
        return factors


class KeyIsIgnored(Mutant):
    def init(self, key, base):
        return super().init(jax.random.key(0), base)


class GlobalRandomNumbers(Mutant):
    def init(self, key, base):
        factors = super().init(key, base)
        factors.trainable["a"] += np.random.random()
        return factors


class LayersShareTheirStart(Mutant):
    def init(self, key, base):
        factors = super().init(key, base)
        alone = super().init(jax.random.key(0), base)
        return factors._replace(trainable=alone.trainable)


_calls = itertools.count(1)


class CountsItsCalls(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        return super().dot(x, base, factors) * (1 + next(_calls) / 100)


class ChangesItsArguments(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        y = super().dot(x, base, factors)
        factors.constants["scale"] *= 0
        return y


class ReadsSettingsWhileItRuns(Mutant):
    def scaled_b(self, factors):
        return self.alpha / self.rank * factors.trainable["b"]


@dataclasses.dataclass(frozen=True)
class ReadsAWholeNumberWhileItRuns(ReadsSettingsWhileItRuns):
    alpha: float = 16


class EqualsOnlyItself(Mutant):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class MixesTokens(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        return super().dot(x + x.mean(-2, keepdims=True), base, factors)


class MixesExamples(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        return super().dot(x + x.mean(0, keepdims=True), base, factors)


class KeepsItsStartWithoutACopy(Mutant):
    def init(self, key, base):
        factors = super().init(key, base)
        factors.constants["start"] = factors.trainable["a"]
        return factors


class UpdateWidens(Mutant):
    def update(self, state, before, after, grads, step):
        state, after = super().update(state, before, after, grads, step)
        return state, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), after)


class UpdateUndoesTheStep(Mutant):
    def update(self, state, before, after, grads, step):
        return super().update(state, after, before, grads, step)


class UpdateChangesItsArguments(Mutant):
    def update(self, state, before, after, grads, step):
        for each in before.values():
            each.trainable["a"] = 0 * each.trainable["a"]
        return super().update(state, before, after, grads, step)


class PenaltyCountsItsCalls(Mutant):
    def penalty(self, factors):
        return next(_calls) * sum((each.trainable["a"] ** 2).sum() for each in factors.values())


class PrunesEverything(Mutant):
    def prune(self, state, factors):
        return dict.fromkeys(factors)


class WrongUnderVmap(Mutant):
    def low_rank_factors(self, factors, dtype):
        @jax.custom_batching.custom_vmap
        def same(a):
            return a

        same.def_vmap(lambda size, batched, a: (2 * a, True))
        a, b = super().low_rank_factors(factors, dtype)
        return same(a), b


class StartsDoubledUnderVmap(Mutant):
    def init(self, key, base):
        @jax.custom_batching.custom_vmap
        def same(a):
            return a

        same.def_vmap(lambda size, batched, a: (2 * a, True))
        factors = super().init(key, base)
        trainable = {**factors.trainable, "a": same(factors.trainable["a"])}
        return factors._replace(trainable=trainable)


class NegatesEachShard(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        @custom_partitioning
        def same(value):
            return value

        def partition(mesh, arguments, result):
            return mesh, jax.lax.neg, result.sharding, (arguments[0].sharding,)

        same.def_partition(partition, sharding_rule="... -> ...")
        return super().dot(x, dataclasses.replace(base, value=same(base.value)), factors)


class KeepsAKey(Mutant):
    def init(self, key, base):
        factors = super().init(key, base)
        factors.constants["key"] = key
        return factors


class TakesFactorsFirst(Mutant):
    def dot(self, factors, x, base, *, dropout_key=None):
        return super().dot(x, base, factors)


class RoundsWhatIsAccumulated(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        return super().dot(x, base, factors).astype(x.dtype)


class DropsTheBaseToo(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        return super().dot(dropout(x, factors, dropout_key), base, factors)


class DropoutDetachesA(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        if dropout_key is not None:
            detached = {**factors.trainable, "a": jax.lax.stop_gradient(factors.trainable["a"])}
            factors = factors._replace(trainable=detached)
        return super().dot(x, base, factors, dropout_key=dropout_key)


class DropoutAddsToTheMean(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        y = super().dot(x, base, factors, dropout_key=dropout_key)
        return y if dropout_key is None else y + jax.lax.stop_gradient(y - base.dot(x))


class ForgetsItsStart(Mutant):
    def low_rank_factors(self, factors, dtype):
        constants = {name: x for name, x in factors.constants.items() if name not in ("a0", "b0")}
        return super().low_rank_factors(factors._replace(constants=constants), dtype)


class HurriesA(Mutant):
    def learning_rates(self, constants):
        ratios = super().learning_rates(constants)
        return {path: {"a": rate["b"] ** 2, **rate} for path, rate in ratios.items()}


class PreconditionsInSilence(Mutant):
    def precondition(self, gradients, factors):
        return jax.tree.map(lambda gradient: 2 * gradient, gradients)


class ClimbsWhenPreconditioned(PreconditionsInSilence):
    preconditions = True

    def precondition(self, gradients, factors):
        return jax.tree.map(jnp.negative, super().precondition(gradients, factors))


class KnowsDenseWeightsOnly(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        return super().dot(x, base, factors) if type(base) is Base else base.dot(x)


class PromotesRanks(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        return super().dot(x, base, factors, dropout_key=dropout_key) + jnp.zeros(base.shape[1])


class PromotesDtypes(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        update = (x @ factors.trainable["a"].T) @ self.scaled_b(factors)
        y = base.dot(x)
        return (y + update).astype(y.dtype)


class PromotesInTheUpdate(Mutant):
    def update(self, state, before, after, grads, step):
        def decayed(leaf):
            return (leaf * (1 - 1e-3 * step)).astype(leaf.dtype)

        state, after = super().update(state, before, after, grads, step)
        return state, jax.tree.map(decayed, after)


class WrongOnInt8(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        y = super().dot(x, base, factors, dropout_key=dropout_key)
        return 2 * y if isinstance(getattr(base, "storage", None), lj.Int8) else y


class UpdatesEachByItself(Tied):
    def update(self, state, before, after, grads, step):
        state, after = super().update(state, before, after, grads, step)
        return state, {p: {**x, "b": x["b"] * x["d"].sum()} for p, x in after.items()}


MUTANTS = [
    (TakesFactorsFirst, "signatures_are_those_of_the_contract"),
    (RoundsWhatIsAccumulated, "products_accumulate_as_asked"),
    (EqualsOnlyItself, "settings_are_static"),
    (KeyIsIgnored, "init_is_a_function_of_its_key"),
    (GlobalRandomNumbers, "init_is_a_function_of_its_key"),
    (FactorsAsNarrowAsTheBase, "factors_are_wide"),
    (StartsDoubledUnderVmap, "init_is_a_function_of_its_key"),
    (StartsElsewhere, "starts_at_the_base"),
    (StartsElsewhere, "begins_as_the_base"),
    (CountsOneMore, "count_is_exact"),
    (CountsOneSideTwice, "count_is_exact"),
    (CountsSquaresWrongly, "count_is_exact"),
    (TrainsForNothing, "count_is_exact"),
    (UpdatesEachByItself, "shared_arrays_are_one"),
    (CountsItsCalls, "calls_are_pure"),
    (ChangesItsArguments, "calls_are_pure"),
    (UpdateChangesItsArguments, "calls_are_pure"),
    (PenaltyCountsItsCalls, "calls_are_pure"),
    (DotForgetsTheScale, "products_equal_the_weight"),
    (DotForgetsTheBase, "products_equal_the_weight"),
    (MakesARowOfNone, "products_equal_the_weight"),
    (DotIsNotANumber, "products_equal_the_weight"),
    (TransposedDotIsTheBase, "products_equal_the_weight"),
    (TakesTheRowBefore, "products_equal_the_weight"),
    (IsTwiceTheLoRAThatItSays, "plain_lora_equals_the_weight"),
    (DotDetachesA, "gradients_equal_those_through_the_weight"),
    (OutputsAreFloat32, "narrow_inputs_give_narrow_outputs"),
    (WeightIsNarrow, "narrow_inputs_give_narrow_outputs"),
    (RoundsTheFactors, "narrow_inputs_give_narrow_outputs"),
    (ReadsSettingsWhileItRuns, "numbers_are_read_from_constants"),
    (ReadsAWholeNumberWhileItRuns, "numbers_are_read_from_constants"),
    (DotForgetsTheScale, "apply_equals_forward_of_merge"),
    (NothingLearns, "apply_equals_forward_of_merge"),
    (LayersShareTheirStart, "stacked_layers_equal_single_ones"),
    (CountsItsCalls, "works_under_jit"),
    (WrongUnderVmap, "works_under_vmap"),
    (CountsItsCalls, "works_under_scan"),
    (CountsItsCalls, "works_under_remat"),
    (NegatesEachShard, "works_on_a_mesh"),
    (KeepsAKey, "survives_a_file"),
    (RoundsTheFactors, "narrow_models_stay_narrow"),
    (NothingLearns, "learns_by_training"),
    (UpdateUndoesTheStep, "learns_by_training"),
    (UpdateWidens, "learns_by_training"),
    (PrunesEverything, "pruning_changes_nothing"),
    (GlobalRandomNumbers, "the_same_key_gives_the_same_run"),
    (GlobalRandomNumbers, "instances_share_no_state"),
    (MixesTokens, "is_causal_and_batch_invariant"),
    (MixesExamples, "is_causal_and_batch_invariant"),
    (DropsTheBaseToo, "dropout_spares_the_base"),
    (DropoutDetachesA, "dropout_spares_the_base"),
    (DropoutAddsToTheMean, "dropout_spares_the_base"),
    (ForgetsItsStart, "starts_from_any_initialization"),
    (HurriesA, "learns_at_its_ratio"),
    (PreconditionsInSilence, "goes_down_preconditioned"),
    (ClimbsWhenPreconditioned, "goes_down_preconditioned"),
    (KnowsDenseWeightsOnly, "acts_on_quantised_weights"),
    (WrongOnInt8, "acts_on_quantised_weights"),
]


@pytest.mark.parametrize(
    "mutant, clause", MUTANTS, ids=lambda value: getattr(value, "__name__", value)
)
def test_broken_variants_fail_the_right_clause(mutant, clause):
    with pytest.raises(contract.ContractError, match=f"{mutant.__name__}.* breaks '{clause}'") as e:
        lj.check(mutant(), checks=[clause])
    assert "\n" not in str(e.value)


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


def test_every_clause_has_a_mutant():
    # No variant can break these, see below.
    untouched = {"training_leaves_the_base_alone", "disabling_gives_back_the_base"}
    known = {clause.__name__ for clause in contract.CLAUSES}
    assert {clause for _, clause in MUTANTS} == known - untouched


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

    monkeypatch.setattr(training, "_train", greedy)
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


def test_a_reason_excuses_a_variant_that_starts_elsewhere():
    class StartsElsewhereAndSaysSo(StartsElsewhere):
        differs_at_init = "its B does not start at zero"

    lj.check(StartsElsewhereAndSaysSo(), checks=["starts_at_the_base", "begins_as_the_base"])


class StartsElsewhereForOneSetting(StartsElsewhere):
    @property
    def differs_at_init(self):
        return "its B is drawn" if self.scale == "alpha" else ""


def test_a_reason_may_depend_on_settings():
    lj.check(StartsElsewhereForOneSetting(scale="alpha"), checks=["starts_at_the_base"])
    with pytest.raises(contract.ContractError, match="breaks 'starts_at_the_base'"):
        lj.check(StartsElsewhereForOneSetting(), checks=["starts_at_the_base"])


def test_a_reason_for_one_initialization_excuses_that_alone():
    class DrawsB(Mutant):
        def init(self, key, base):
            factors = super().init(key, base)
            if self.initialization == "gaussian":
                factors.trainable["b"] += 0.01
            return factors

        @property
        def differs_at_init(self):
            return "its B is drawn" if self.initialization == reason else ""

    reason = "gaussian"
    lj.check(DrawsB(), checks=["starts_from_any_initialization"])
    reason = "normal"
    with pytest.raises(contract.ContractError, match="the start from 'gaussian' differs by"):
        lj.check(DrawsB(), checks=["starts_from_any_initialization"])


def test_an_error_inside_a_variant_says_which_clause_met_it():
    class Fails(Mutant):
        def dot_t(self, x, base, factors):
            raise NotImplementedError("no transpose")

    with pytest.raises(NotImplementedError, match="no transpose") as error:
        lj.check(Fails(), checks=["products_equal_the_weight"])
    assert "clause 'products_equal_the_weight' of" in error.value.__notes__[-1]


def test_check_stops_at_the_first_broken_clause():
    with pytest.raises(contract.ContractError, match=r"breaks 'count_is_exact': count.* is 41"):
        lj.check(CountsOneMore())


def test_the_report_is_a_table():
    report = lj.check(LoRA(rank=1), checks=["count_is_exact", "settings_are_static"])
    assert str(report).splitlines()[1:] == [
        "clause               result",
        "-------------------  ------",
        "settings_are_static  ok",
        "count_is_exact       ok",
    ]


def test_a_whole_check_says_how_long_dot_takes(monkeypatch):
    monkeypatch.setattr(contract, "CLAUSES", ())
    monkeypatch.setattr(timing, "WIDTH", 24)
    report = lj.check(LoRA(rank=1))
    assert report.dot_time > 0
    said = f"dot takes {report.dot_time:.2f} x the time of x @ W' (256 x 24 x 24, float32, cpu)"
    assert str(report).splitlines()[-1] == said
    assert "dot takes" not in str(lj.check(variants.make("head_only")))


def test_clauses_of_a_matrix_do_not_apply_without_factors():
    report = lj.check(variants.make("head_only"), checks=["count_is_exact", "works_under_jit"])
    assert report.rows == (
        ("count_is_exact", "does not apply: no factors"),
        ("works_under_jit", "ok"),
    )


def test_unknown_clauses_are_named():
    with pytest.raises(ValueError, match="unknown clause 'count'; nearest: 'count_is_exact'"):
        lj.check(LoRA(), checks=["count"])


def test_no_size_suits_an_impossible_variant():
    with pytest.raises(ValueError, match=r"works for none of the sizes.* = 10000 directions"):
        lj.check(LoRA(rank=10_000, initialization="pissa"))


def test_check_leaves_the_precision_as_it_was():
    lj.check(LoRA(), checks=["count_is_exact"])
    assert not jax.config.jax_enable_x64
    assert jnp.ones(1).dtype == jnp.float32
