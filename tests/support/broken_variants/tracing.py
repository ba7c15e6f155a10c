"""Variants that JAX must not trace: impure, not static, or different under a transformation."""

import dataclasses
import itertools

import jax
from jax.experimental.custom_partitioning import custom_partitioning

from broken_variants import Mutant

_calls = itertools.count(1)


class CountsItsCalls(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        return super().dot(x, base, factors) * (1 + next(_calls) / 100)


class PenaltyCountsItsCalls(Mutant):
    def penalty(self, factors):
        return next(_calls) * sum((each.trainable["a"] ** 2).sum() for each in factors.values())


class ChangesItsArguments(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        y = super().dot(x, base, factors)
        factors.constants["scale"] *= 0
        return y


class UpdateChangesItsArguments(Mutant):
    def update(self, state, before, after, grads, step):
        for each in before.values():
            each.trainable["a"] = 0 * each.trainable["a"]
        return super().update(state, before, after, grads, step)


class ReadsSettingsWhileItRuns(Mutant):
    def scaled_b(self, factors):
        return self.alpha / self.rank * factors.trainable["b"]


@dataclasses.dataclass(frozen=True)
class ReadsAWholeNumberWhileItRuns(ReadsSettingsWhileItRuns):
    alpha: float = 16


class EqualsOnlyItself(Mutant):
    __eq__ = object.__eq__  # pyright: ignore[reportAssignmentType]
    __hash__ = object.__hash__


class WrongUnderVmap(Mutant):
    def low_rank_factors(self, factors, dtype):
        @jax.custom_batching.custom_vmap
        def same(a):
            return a

        same.def_vmap(lambda size, batched, a: (2 * a, True))
        a, b = super().low_rank_factors(factors, dtype)
        return same(a), b


class NegatesEachShard(Mutant):
    def dot(self, x, base, factors, *, dropout_key=None):
        @custom_partitioning
        def same(value):
            return value

        def partition(mesh, arguments, result):
            return mesh, jax.lax.neg, result.sharding, (arguments[0].sharding,)

        same.def_partition(partition, sharding_rule="... -> ...")
        return super().dot(x, dataclasses.replace(base, value=same(base.value)), factors)


BREAKS = [
    (EqualsOnlyItself, "settings_are_static"),
    (CountsItsCalls, "calls_are_pure"),
    (ChangesItsArguments, "calls_are_pure"),
    (UpdateChangesItsArguments, "calls_are_pure"),
    (PenaltyCountsItsCalls, "calls_are_pure"),
    (ReadsSettingsWhileItRuns, "numbers_are_read_from_constants"),
    (ReadsAWholeNumberWhileItRuns, "numbers_are_read_from_constants"),
    (CountsItsCalls, "works_under_jit"),
    (WrongUnderVmap, "works_under_vmap"),
    (CountsItsCalls, "works_under_scan"),
    (CountsItsCalls, "works_under_remat"),
    (NegatesEachShard, "works_on_a_mesh"),
]
