"""Variants that start at the wrong numbers, or miscount what they train."""

import jax
import jax.numpy as jnp
import numpy as np

from broken_variants import Mutant


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


class StartsDoubledUnderVmap(Mutant):
    def init(self, key, base):
        @jax.custom_batching.custom_vmap
        def same(a):
            return a

        same.def_vmap(lambda size, batched, a: (2 * a, True))
        factors = super().init(key, base)
        trainable = {**factors.trainable, "a": same(factors.trainable["a"])}
        return factors._replace(trainable=trainable)


class KeepsAKey(Mutant):
    def init(self, key, base):
        factors = super().init(key, base)
        factors.constants["key"] = key
        return factors


BREAKS = [
    (KeyIsIgnored, "init_is_a_function_of_its_key"),
    (GlobalRandomNumbers, "init_is_a_function_of_its_key"),
    (StartsDoubledUnderVmap, "init_is_a_function_of_its_key"),
    (StartsElsewhere, "starts_at_the_base"),
    (StartsElsewhere, "begins_as_the_base"),
    (CountsOneMore, "count_is_exact"),
    (CountsOneSideTwice, "count_is_exact"),
    (CountsSquaresWrongly, "count_is_exact"),
    (TrainsForNothing, "count_is_exact"),
    (LayersShareTheirStart, "stacked_layers_equal_single_ones"),
    (KeepsAKey, "survives_a_file"),
    (GlobalRandomNumbers, "the_same_key_gives_the_same_run"),
    (GlobalRandomNumbers, "instances_share_no_state"),
]
