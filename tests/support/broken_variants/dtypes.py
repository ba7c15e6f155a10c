"""Variants that round, widen or promote where the contract forbids it."""

import jax
import jax.numpy as jnp

from broken_variants import Mutant


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


class RoundsWhatIsAccumulated(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        return super().dot(x, base, factors).astype(x.dtype)


class UpdateWidens(Mutant):
    def update(self, state, before, after, grads, step):
        state, after = super().update(state, before, after, grads, step)
        return state, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), after)


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


BREAKS = [
    (RoundsWhatIsAccumulated, "products_accumulate_as_asked"),
    (FactorsAsNarrowAsTheBase, "factors_are_wide"),
    (OutputsAreFloat32, "narrow_inputs_give_narrow_outputs"),
    (WeightIsNarrow, "narrow_inputs_give_narrow_outputs"),
    (RoundsTheFactors, "narrow_inputs_give_narrow_outputs"),
    (RoundsTheFactors, "narrow_models_stay_narrow"),
    (UpdateWidens, "learns_by_training"),
]
