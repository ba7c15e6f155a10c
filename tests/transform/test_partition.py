"""Taking trees apart by path and putting them together again."""

from collections import OrderedDict
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax as lj
from lora_jax.messages import nearest, nearest_if_close
from lora_jax.partition import flatten, matches, only, select_paths


class Pair(NamedTuple):
    left: object
    right: object


def dictionary():
    return {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "b": [jnp.ones(2), None, 3.0]}


def state():
    return nnx.split(nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu))[1]


def module():
    return eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0))


def named():
    return Pair(jnp.ones(2), Pair((jnp.zeros(1), "text"), OrderedDict(z=jnp.ones(1), a=None)))


TREES = {
    "dictionary": (dictionary, ["a/kernel", "a/bias", "b/0", "b/2"], ".*kernel"),
    "nnx.State": (state, ["layers/0/kernel", "layers/0/bias"], "kernel"),
    "equinox": (
        module,
        ["layers/0/weight", "layers/0/bias", "layers/1/weight", "layers/1/bias", "activation"],
        "weight",
    ),
    "named tuples": (named, ["left", "right/left/0", "right/left/1", "right/right/z"], "left/.*"),
    "one array": (lambda: jnp.ones(3), [""], ".*"),
}


@pytest.mark.parametrize("name", TREES)
def test_combine_undoes_partition(name):
    make, paths, pattern = TREES[name]
    tree = make()
    assert set(flatten(tree)[0]) >= set(paths)
    chosen = {path for path in flatten(tree)[0] if matches(pattern, path)}
    assert chosen
    for where in (
        pattern,
        [pattern],
        lambda path, leaf: path in chosen,
        lambda path, leaf: hasattr(leaf, "shape"),
        lambda path, leaf: True,
        lambda path, leaf: False,
    ):
        selected, rest = lj.partition(tree, where)
        for parts in ((selected, rest), (rest, selected)):
            again = lj.combine(*parts)
            assert jax.tree.structure(again) == jax.tree.structure(tree)
            same = map(lambda a, b: a is b, jax.tree.leaves(again), jax.tree.leaves(tree))
            assert all(same)
    selected, rest = lj.partition(tree, pattern)
    assert len(jax.tree.leaves(selected)) == len(chosen)
    assert len(jax.tree.leaves(rest)) == len(flatten(tree)[0]) - len(chosen)


def test_parts_go_through_jit_and_grad():
    selected, rest = lj.partition({"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, "w")

    @jax.jit
    def loss(selected, rest):
        tree = lj.combine(selected, rest)
        return jnp.sum(tree["w"]) * 2 + jnp.sum(tree["b"])

    gradient = jax.grad(loss)(selected, rest)
    assert gradient["b"] is lj.ABSENT
    np.testing.assert_array_equal(gradient["w"], 2 * np.ones((2, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a, a), "'b' is in neither part"),
        (lambda a, b: ({**a, "b": 1.0}, b), "'b' is in both parts"),
        (lambda a, b: (a, {"b": b["b"]}), "different structure"),
    ],
)
def test_combine_names_the_leaf_that_does_not_fit(change, message):
    selected, rest = lj.partition({"w": jnp.ones(2), "b": jnp.ones(3)}, "w")
    with pytest.raises(ValueError, match=message):
        lj.combine(*change(selected, rest))


def test_a_pattern_without_a_leaf_lists_the_nearest():
    tree = {"encoder": {"query": {"kernel": jnp.ones(1)}, "key": {"kernel": jnp.ones(1)}}}
    with pytest.raises(ValueError, match=r"matches no leaf.*'encoder/query/kernel'"):
        lj.partition(tree, "querry/kernel")
    with pytest.raises(ValueError, match=r"'\(' is not a regular expression"):
        lj.partition(tree, "(")


def test_two_leaves_of_one_path():
    with pytest.raises(ValueError, match="share the path 'x/a/b'"):
        flatten({"x": {"a/b": 1.0, "a": {"b": 2.0}}})


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("kernel", "a/kernel", True),
        ("kernel", "a/bkernel", False),
        ("a/kernel", "b/a/kernel", True),
        ("kernel", "kernel/value", False),
        ("a|b", "c/b", True),
        ("a|b", "c/ab", False),
        (".*kernel", "a/bkernel", True),
        ("layers/[0-3]/w", "x/layers/2/w", True),
        ("layers/[0-3]/w", "layers/12/w", False),
    ],
)
def test_a_pattern_matches_a_whole_path_or_its_tail(pattern, path, expected):
    assert matches(pattern, path) is expected


def test_a_path_alone_is_no_tail_of_another():
    paths = ["a.b/w", "c/a.b/w", "aab/w"]
    assert select_paths([only("a.b/w")], paths) == ["a.b/w"]
    assert select_paths([only("c/a.b/w")], paths) == ["c/a.b/w"]


def test_nearest():
    assert nearest("kernle", ["a/kernel", "b/bias"]).startswith("'a/kernel'")
    assert nearest("zzzzzz", []) == "none"
    assert nearest_if_close("zzzzzz", ["kernel"]) == ""
    assert nearest_if_close("Kernle", ["kernel", "bias"]) == "; nearest: 'kernel'"


def test_a_pattern_of_several_lines_is_one_line_in_the_message():
    with pytest.raises(ValueError, match=r"^pattern '\\na' matches no ") as error:
        select_paths(["\na"], ["b"])
    assert "\n" not in str(error.value)
