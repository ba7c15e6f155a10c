"""Constants that files leave out are made again as they were, or a line says otherwise."""

import dataclasses
import re
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import pytest
import safetensors.numpy

import lora_jax as lj
from lora_jax.adapters.base_digest import OtherBaseError
from lora_jax.files.tree_file import load_tree, save_tree
from lora_jax.variant import Factors, Variant, wide


@dataclasses.dataclass(frozen=True)
class Between(Variant):
    """W' = W + P R Q, P from the weight itself, Q drawn, and the order of its rows shared."""

    rank: int = 2
    remade: ClassVar[tuple[str, ...]] = ("p", "q", "order", "shift")

    def init_shared(self, key, shapes, dtype):
        order = jax.random.permutation(key, self.rank).astype(jnp.int32)
        return {"order": order, "init_key": jax.random.key_data(key)}

    def init(self, key, base):
        dtype = wide(base.dtype)
        constants = {
            "p": base.dense()[:, : self.rank].astype(dtype),
            "q": jax.random.normal(key, (self.rank, base.shape[1]), dtype),
            "shift": jax.random.normal(key, (self.rank,), dtype),
            "init_key": jax.random.key_data(key),
        }
        return Factors({"r": jnp.zeros((self.rank, self.rank), dtype)}, constants)

    def weight(self, base, factors):
        c = factors.constants
        return base.dense() + c["p"] @ factors.trainable["r"] @ (c["q"] + c["shift"][:, None])

    def count(self, shape):
        return self.rank**2


@dataclasses.dataclass(frozen=True)
class Kept(Between):
    remade: ClassVar[tuple[str, ...]] = ()


PARAMS = {
    "stack": jax.random.normal(jax.random.key(7), (3, 40, 40)),
    "last": jax.random.normal(jax.random.key(8), (40, 5)),
}
X = jnp.ones((2, 40))


def forward(params, x):
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])
    return x @ params["last"]


def made(seed, variant=None, params=PARAMS, impl=None):
    adapted = lj.adapt(forward, variant or Between(), ["stack", "last"])
    init = jax.jit(adapted.init)
    trainable, frozen = init(jax.random.key(seed, impl=impl), params, X)
    return jax.tree.map(lambda x: x + 0.5, trainable), frozen


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_what_is_left_out_comes_back_whatever_key_began_it(impl, tmp_path):
    first, other = made(1, impl=impl), made(2, impl=impl)
    path = lj.save_adapter(tmp_path, *first, {"note": "x"})
    names = safetensors.numpy.load_file(path)
    ends = {name.rpartition("/")[2] for name in names}
    assert ends == {"r", "init_key"}
    whole = lj.save_adapter(tmp_path / "whole", *first, whole=True)
    assert whole.stat().st_size > path.stat().st_size + 4 * (3 * 40 * 2 * 2)
    for file in (path, whole):
        *loaded, _ = lj.load_adapter(file, *other)
        chex.assert_trees_all_equal(tuple(loaded), first)
        chex.assert_trees_all_equal(tuple(lj.start_from(file, *other)), first)
    assert lj.load_adapter(path, *other)[2] == {"note": "x"}


def test_a_file_that_has_everything_still_loads(tmp_path):
    """As those of earlier versions do, whose variants left out nothing."""
    first, other = made(1, Kept()), made(2)
    path = lj.save_adapter(tmp_path, *first)
    trainable, frozen, _ = lj.load_adapter(path, *other)
    chex.assert_trees_all_equal((trainable, frozen.constants), (first[0], first[1].constants))


def test_what_does_not_come_out_the_same_is_saved(tmp_path):
    trainable, frozen = made(1)
    changed = {**frozen.constants["last"], "q": frozen.constants["last"]["q"] * 1.5}
    frozen = dataclasses.replace(frozen, constants={**frozen.constants, "last": changed})
    path = lj.save_adapter(tmp_path, trainable, frozen)
    saved = safetensors.numpy.load_file(path)
    assert "constants/last/q" in saved and "constants/last/p" not in saved
    _, loaded, _ = lj.load_adapter(path, *made(2))
    chex.assert_trees_all_equal(loaded.constants, frozen.constants)


def test_layers_that_differ_keep_theirs(tmp_path):
    def some(seed):
        adapted = lj.adapt(forward, Between(), [lj.layers("stack", 1), "last"])
        return jax.jit(adapted.init)(jax.random.key(seed), PARAMS, X)

    first = some(1)
    path = lj.save_adapter(tmp_path, *first)
    saved = safetensors.numpy.load_file(path)
    assert "constants/stack/q" in saved and "constants/last/q" not in saved
    chex.assert_trees_all_equal(tuple(lj.load_adapter(path, *some(2))[:2]), first)


def test_what_is_no_key_is_named(tmp_path):
    """A file of somebody else's, with or without what is made again."""
    first = made(1)
    for whole in (False, True):
        tree, meta = load_tree(lj.save_adapter(tmp_path, *first, whole=whole))
        for part, where, data in (
            ("constants", "last", jnp.zeros(3, jnp.uint32)),
            ("constants", "last", jnp.zeros(2)),
            ("constants", "last", jnp.zeros((), jnp.uint32)),
            ("constants", "stack", jnp.zeros(2, jnp.uint32)),
            ("constants", "stack", jnp.zeros((2, 4), jnp.uint32)),
            ("shared", "0", jnp.zeros((1, 2), jnp.uint32)),
        ):
            changed = {**tree[part], where: {**tree[part][where], "init_key": data}}
            path = save_tree(tmp_path / "changed", {**tree, part: changed}, meta)
            said = f"{path} has {data.dtype}{list(data.shape)} for '{part}/{where}/init_key', "
            for read in (lj.load_adapter, lj.start_from):
                with pytest.raises(ValueError, match=f"^{re.escape(said)}which is not a key$"):
                    read(path, *first)


def test_another_base_or_another_way_to_draw_is_a_line(tmp_path, monkeypatch):
    path = lj.save_adapter(tmp_path, *made(1))
    elsewhere = made(1, params={**PARAMS, "last": PARAMS["last"] + 1})
    with pytest.raises(OtherBaseError, match="'last' has other numbers here"):
        lj.load_adapter(path, *elsewhere)
    with pytest.raises(ValueError, match="leaves out 'constants/last/p', and made again here it"):
        lj.load_adapter(path, *elsewhere, any_base=True)
    true = Between.init

    def init(self, key, base):
        trainable, constants = true(self, key, base)
        return Factors(trainable, {**constants, "q": -constants["q"]})

    monkeypatch.setattr(Between, "init", init)
    with pytest.raises(ValueError, match=r"leaves out '.*/q', and .* it is not the same") as error:
        lj.load_adapter(path, *made(1))
    assert "\n" not in str(error.value)
