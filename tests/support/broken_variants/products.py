"""Variants whose products with a weight, or the gradients of these, are wrong."""

import jax
import jax.numpy as jnp

import lora_jax as lj
from broken_variants import Mutant
from lora_jax.methods.products import dropout
from lora_jax.variant import Base


class TakesFactorsFirst(Mutant):
    def dot(self, factors, x, base, *, dropout_key=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().dot(x, base, factors)


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
        a, b = super().as_lora(base, factors)  # pyright: ignore[reportGeneralTypeIssues]
        return a, b / 2


class RescalesNothingThatItSays(Mutant):
    def as_rescaled_lora(self, base, factors):
        a, b = self.as_lora(base, factors)  # pyright: ignore[reportGeneralTypeIssues]
        return a, b, jnp.full(base.shape[1], 1.5)


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


class MixesTokens(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        return super().dot(x + x.mean(-2, keepdims=True), base, factors)


class MixesExamples(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        return super().dot(x + x.mean(0, keepdims=True), base, factors)


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


class KnowsDenseWeightsOnly(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        return super().dot(x, base, factors) if type(base) is Base else base.dot(x)


class WrongOnInt8(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        y = super().dot(x, base, factors, dropout_key=dropout_key)
        return 2 * y if isinstance(getattr(base, "storage", None), lj.Int8) else y


BREAKS = [
    (TakesFactorsFirst, "signatures_are_those_of_the_contract"),
    (DotForgetsTheScale, "products_equal_the_weight"),
    (DotForgetsTheBase, "products_equal_the_weight"),
    (MakesARowOfNone, "products_equal_the_weight"),
    (DotIsNotANumber, "products_equal_the_weight"),
    (TransposedDotIsTheBase, "products_equal_the_weight"),
    (TakesTheRowBefore, "products_equal_the_weight"),
    (IsTwiceTheLoRAThatItSays, "plain_lora_equals_the_weight"),
    (RescalesNothingThatItSays, "plain_lora_equals_the_weight"),
    (DotDetachesA, "gradients_equal_those_through_the_weight"),
    (DotForgetsTheScale, "apply_equals_forward_of_merge"),
    (NothingLearns, "apply_equals_forward_of_merge"),
    (NothingLearns, "learns_by_training"),
    (MixesTokens, "is_causal_and_batch_invariant"),
    (MixesExamples, "is_causal_and_batch_invariant"),
    (DropsTheBaseToo, "dropout_spares_the_base"),
    (DropoutDetachesA, "dropout_spares_the_base"),
    (DropoutAddsToTheMean, "dropout_spares_the_base"),
    (ForgetsItsStart, "starts_from_any_initialization"),
    (KnowsDenseWeightsOnly, "acts_on_quantised_weights"),
    (WrongOnInt8, "acts_on_quantised_weights"),
]
