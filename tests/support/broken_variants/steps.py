"""Variants that spoil a training step: its update, pruning, learning rates or preconditioning."""

import jax
import jax.numpy as jnp
from tied_method import Tied

from broken_variants import Mutant


class UpdateUndoesTheStep(Mutant):
    def update(self, state, before, after, grads, step):
        return super().update(state, after, before, grads, step)


class UpdatesEachByItself(Tied):
    def update(self, state, before, after, grads, step):
        state, after = super().update(state, before, after, grads, step)
        return state, {p: {**x, "b": x["b"] * x["d"].sum()} for p, x in after.items()}


class PrunesEverything(Mutant):
    def prune(self, state, factors):
        return dict.fromkeys(factors)


class HurriesA(Mutant):
    def learning_rates(self, constants):
        ratios = super().learning_rates(constants)
        return {path: {"a": rate["b"] ** 2, **rate} for path, rate in ratios.items()}


class PreconditionsInSilence(Mutant):
    def precondition(self, gradients, factors):
        return jax.tree.map(lambda gradient: 2 * gradient, gradients)


class ClimbsWhenPreconditioned(PreconditionsInSilence):
    preconditions = True  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def precondition(self, gradients, factors):
        return jax.tree.map(jnp.negative, super().precondition(gradients, factors))


BREAKS = [
    (UpdatesEachByItself, "shared_arrays_are_one"),
    (UpdateUndoesTheStep, "learns_by_training"),
    (PrunesEverything, "pruning_changes_nothing"),
    (HurriesA, "learns_at_its_ratio"),
    (PreconditionsInSilence, "goes_down_preconditioned"),
    (ClimbsWhenPreconditioned, "goes_down_preconditioned"),
]
