"""`lj.check` reports each clause, takes a reason to start elsewhere, and names what it refuses."""

import jax
import jax.numpy as jnp
import pytest
from broken_variants import Mutant
from broken_variants.starts import CountsOneMore, StartsElsewhere

import lora_jax as lj
import variants
from lora_jax import contract
from variants.lora import LoRA


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
    monkeypatch.setattr(contract, "WIDTH", 24)
    report = lj.check(LoRA(rank=1))
    assert report.dot_time > 0
    said = f"dot takes {report.dot_time:.2f} x the time of x @ W' (256 x 24 x 24, float32, cpu)"
    assert str(report).splitlines()[-1] == said
    assert "dot takes" not in str(lj.check(variants.make("head_only")))


def test_clauses_of_a_matrix_do_not_apply_without_factors():
    assert len(lj.check(LoRA(), checks="count_is_exact").rows) == 1
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
