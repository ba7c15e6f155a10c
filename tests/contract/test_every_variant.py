"""Every variant of the project keeps the contract, and no code of a variant escapes a clause."""

import inspect

import own_code
import pytest
from broken_variants import Mutant
from broken_variants.products import DotForgetsTheScale

import lora_jax as lj
import variants
from lora_jax import contract
from lora_jax.contract import matrix

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
