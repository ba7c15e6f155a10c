"""An adapter knows its base: the content and the names of it, wherever the arrays lie."""

import dataclasses
from contextlib import nullcontext
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import lora_jax as lj
import variants
from experiments.setup import experiment, from_config
from lora_jax.adapters.adapter_file import BASE
from lora_jax.adapters.base_digest import SMALL, OtherBaseError, base_digests
from lora_jax.files import tree_file

LORA = variants.make("lora", rank=2)


def forward(params, x):
    return x @ params["w"] @ params["v"] @ params["head"]


def made(seed=0, classes=3, also_train=("head",), dtype: Any = np.float32, quantize=None):
    """A trainable head, and two square matrices of which one is adapted."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (64, 64), "v": (64, 64), "head": (64, classes)}
    params = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    adapted = lj.adapt(forward, LORA, "w", also_train, quantize)
    return adapted.init(jax.random.key(0), params, np.ones((1, 64), dtype))


def with_base(frozen, **changes):
    return dataclasses.replace(frozen, base={**frozen.base, **changes})


def test_where_the_arrays_lie_is_no_content():
    _, frozen = made()
    long = np.random.default_rng(1).standard_normal((800, 40)).astype(np.float32)
    assert long.nbytes > SMALL
    found = base_digests(with_base(frozen, long=long))
    assert found.keys() == {"w", "v", "long"}
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    for spec in (PartitionSpec("x"), PartitionSpec(None, "y"), PartitionSpec("y", "x")):
        where = NamedSharding(mesh, spec)
        base = {name: jax.device_put(each, where) for name, each in frozen.base.items()}
        base["long"] = jax.device_put(long, where)
        assert base_digests(dataclasses.replace(frozen, base=base)) == found


def test_any_change_of_content_type_or_name_is_another_digest():
    _, frozen = made()
    w, v = (np.asarray(frozen.base[name]) for name in ("w", "v"))
    one, bit = w.copy(), w.copy()
    one[3, 5] += 1
    bit.view(np.uint32)[63, 63] ^= 1
    others = [w, one, bit, w.T, w.reshape(32, 128), w.view(np.int32), jnp.asarray(w, jnp.bfloat16)]
    digests = [base_digests(with_base(frozen, w=each))["w"] for each in others]
    assert len({*digests}) == len(others)
    straight, crossed = base_digests(frozen), base_digests(with_base(frozen, w=v, v=w))
    assert straight["w"] == crossed["v"] != crossed["w"] == straight["v"]


@pytest.fixture
def saved(tmp_path):
    trainable, frozen = made()
    moved = jax.tree.map(lambda leaf: leaf + 1, trainable)
    return lj.save_adapter(tmp_path / "a", moved, frozen, {"note": "x"}), moved


SAID = "'v' has other numbers here, or is stored in another form"
NF4 = {"v": lj.NF4()}


@pytest.mark.parametrize("other", [{"seed": 1}, {"dtype": jnp.bfloat16}, {"quantize": NF4}])
def test_another_base_is_refused_unless_any_will_do(saved, other):
    path, moved = saved
    trainable, frozen = made(**other)
    for load in (lj.load_adapter, lj.start_from):
        with pytest.raises(OtherBaseError) as error:
            load(path, trainable, frozen)
        assert str(error.value) == (
            f"{path} was trained on another base: {SAID}; any_base=True loads it anyway"
        )
        loaded, onto, *_ = load(path, trainable, frozen, any_base=True)
        chex.assert_trees_all_equal(loaded["adapters"], moved["adapters"])
        assert onto.base is frozen.base


@pytest.mark.parametrize("quantize", [None, {"w": lj.NF4()}])
def test_numbers_that_say_something_of_the_base_are_those_of_the_new_one(quantize, tmp_path):
    """DoRA's norm has those of W's columns; a merged adapter computes it from W itself."""
    rng = np.random.default_rng(0)
    shapes = {"w": (64, 64), "v": (64, 4), "head": (4, 3)}
    params = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    x = rng.standard_normal((5, 64)).astype(np.float32)
    dora = variants.make("dora", rank=2)
    trainable, frozen = lj.adapt(forward, dora, "w", (), quantize).init(
        jax.random.key(0), params, x
    )
    moved = jax.tree.map(lambda leaf: leaf + 0.1, trainable)
    path = lj.save_adapter(tmp_path / "a", moved, frozen)
    adapted = lj.adapt(forward, dora, "w")
    other = adapted.init(jax.random.key(0), {**params, "w": 1.2 * params["w"]}, x)
    loaded, onto, _ = lj.load_adapter(path, *other, any_base=True)
    merged = forward(adapted.merge(loaded, onto), x)
    np.testing.assert_allclose(adapted.apply(loaded, onto, x), merged, rtol=1e-4, atol=1e-3)


def test_its_own_base_is_taken_whatever_is_trained_beside_the_adapters(saved):
    path, moved = saved
    *read, meta = lj.load_adapter(path, *made())
    assert meta == {"note": "x"}
    chex.assert_trees_all_equal(read[0], moved)
    told = pytest.warns(UserWarning, match="'head', which|for 'head', here")
    runs = made(also_train=("v", "head")), made(classes=2), made(also_train=())
    for (trainable, frozen), said in zip(runs, (nullcontext(), told, told), strict=True):
        with said:
            begun, _ = lj.start_from(path, trainable, frozen)
        chex.assert_trees_all_equal(begun["adapters"], moved["adapters"])


def test_digests_that_are_given_are_taken(saved):
    """Also those of a base of which an adapter trains a part in full."""
    path, moved = saved
    trainable, frozen = made()
    whole = {**base_digests(frozen), "head": "0" * 16}  # no adapter of this file has it in its base
    loaded, *_ = lj.load_adapter(path, trainable, frozen, digests=whole)
    chex.assert_trees_all_equal(loaded, moved)
    with pytest.raises(OtherBaseError, match=SAID):
        lj.load_adapter(path, trainable, frozen, digests=base_digests(made(seed=1)[1]))


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (lambda base: {"w": base["w"]}, "'v' is not in the base here; any"),
        (lambda base: {**base, "u": np.ones(3, np.float32)}, "'u' is new here; any"),
    ],
)
def test_parameters_that_only_one_base_has_make_it_another(base, said, saved):
    trainable, frozen = made()
    with pytest.raises(OtherBaseError, match=said):
        lj.load_adapter(saved[0], trainable, dataclasses.replace(frozen, base=base(frozen.base)))


class WithDropout(nnx.Module):
    def __init__(self, kernels, masks):
        self.up = nnx.Linear(8, 6, rngs=nnx.Rngs(kernels))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(masks))

    def __call__(self, x):
        return self.dropout(self.up(x))


def with_dropout(kernels=0, masks=0, calls=0):
    """An adapter of an NNX model that keeps a key and a count of its calls in train mode."""
    model, x = WithDropout(kernels, masks), jnp.ones((2, 8))
    for _ in range(calls):
        model(x)
    forward, params = lj.from_nnx(model)
    trainable, frozen = lj.adapt(forward, LORA).init(jax.random.key(0), params, x)
    return jax.tree.map(lambda leaf: leaf + 1, trainable), frozen


def test_the_state_of_random_generators_is_no_part_of_a_base(tmp_path):
    one, other = with_dropout(), with_dropout(masks=1, calls=2)
    assert {"dropout/rngs/key", "dropout/rngs/count"} < one[1].base.keys()
    assert base_digests(one[1]) == base_digests(other[1])
    assert base_digests(one[1]).keys() == {"up/bias", "up/kernel"}
    path = lj.save_adapter(tmp_path / "a", *one)
    for adapter in (one, other):
        loaded, *_ = lj.load_adapter(path, *adapter)
        chex.assert_trees_all_equal(loaded, one[0])
    with pytest.raises(OtherBaseError, match="'up/kernel' has other"):
        lj.load_adapter(path, *with_dropout(kernels=1))
    no_counter = with_base(made()[1], count=np.ones(3, np.float32))
    assert "count" in base_digests(no_counter)


def test_a_file_of_an_earlier_version_is_loaded_onto_any_base(saved, tmp_path):
    path, moved = saved
    tree, meta = tree_file.load_tree(path)
    assert meta.pop(BASE).keys() == {"w", "v"}
    old = tree_file.save_tree(tmp_path / "old", tree, meta)
    loaded, _, meta = lj.load_adapter(old, *made(seed=1))
    assert meta == {"note": "x"}
    chex.assert_trees_all_equal(loaded, moved)


def test_of_shapes_alone_nothing_is_known(saved):
    path, moved = saved
    shapes = jax.eval_shape(made)
    assert base_digests(shapes[1]) == {}
    loaded, _, _ = lj.load_adapter(path, *shapes)
    chex.assert_trees_all_equal(loaded, moved)


def test_a_config_says_that_any_base_will_do(saved):
    path, moved = saved
    assert from_config.make_start("runs/mnli") == ("runs/mnli", False)
    assert from_config.make_start("any_base:runs/mnli") == ("runs/mnli", True)
    with pytest.raises(ValueError, match="another base") as error:
        experiment._begin(str(path), *made(seed=1))
    way_out = f"; --config.start_from=any_base:{path} begins from it anyway"
    assert str(error.value).endswith(f"stored in another form{way_out}")
    begun, _ = experiment._begin(f"any_base:{path}", *made(seed=1))
    chex.assert_trees_all_equal(begun["adapters"], moved["adapters"])
