"""The contract of methods whose matrices share what they train, and of those that get it wrong."""

import jax
import jax.numpy as jnp
import pytest
from tied_method import Tied

from lora_jax import contract

CLAUSES = {each.__name__: each for each in contract.CLAUSES}
SOME = [
    "factors_are_wide",
    "count_is_exact",
    "shared_arrays_are_one",
    "apply_equals_forward_of_merge",
    "survives_a_file",
    "learns_by_training",
    "learns_at_its_ratio",
]


@pytest.mark.parametrize("clause", SOME)
def test_a_users_method_keeps_the_contract(clause):
    CLAUSES[clause](Tied())


class CountsWhatIsShared(Tied):
    def count(self, shape):
        return self.rank * (1 + sum(shape))


class SharesWhatIsNarrow(Tied):
    def init_shared(self, key, shapes, dtype):
        return jax.tree.map(
            lambda x: x.astype(jnp.bfloat16), super().init_shared(key, shapes, dtype)
        )


class ForgetsToShare(Tied):
    def init_shared(self, key, shapes, dtype):
        arrays = super().init_shared(key, shapes, dtype)
        return {name: x for name, x in arrays.items() if name != "b"}


class HasItsOwnToo(Tied):
    def init(self, key, base):
        factors = super().init(key, base)
        return factors._replace(trainable={**factors.trainable, "a": factors.trainable["d"]})


class IgnoresWhatIsShared(Tied):
    def weight(self, base, factors):
        trainable = {**factors.trainable, "a": jnp.ones_like(factors.trainable["a"])}
        return super().weight(base, factors._replace(trainable=trainable))


class DetachesWhatIsShared(Tied):
    def dot(self, x, base, factors, *, dropout_key=None):
        detached = {**factors.trainable, "b": jax.lax.stop_gradient(factors.trainable["b"])}
        return super().dot(x, base, factors._replace(trainable=detached), dropout_key=dropout_key)


class HurriesAll(Tied):
    def learning_rates(self, constants):
        rates = {path: {"d": each["ratio"]} for path, each in constants.items()}
        return {path: {**each, "b": each["d"] ** 2} for path, each in rates.items()}


@pytest.mark.parametrize(
    "mutant, clause, said",
    [
        (CountsWhatIsShared, "count_is_exact", r"depends on 2 of d \[2\]"),
        (SharesWhatIsNarrow, "factors_are_wide", "trainable 'a' of a bfloat16 matrix is bfloat16"),
        (ForgetsToShare, "factors_are_wide", "gives no 'b' of shared_trainable"),
        (HasItsOwnToo, "factors_are_wide", r"\['a'\] are both of one matrix and shared_trainable"),
        (IgnoresWhatIsShared, "count_is_exact", "does not depend on the trainable 'a'"),
        (DetachesWhatIsShared, "apply_equals_forward_of_merge", "gradient"),
        (HurriesAll, "learns_at_its_ratio", "factors move"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_mistakes_with_shared_arrays_are_found(mutant, clause, said):
    with pytest.raises(ValueError, match=said):
        CLAUSES[clause](mutant())
