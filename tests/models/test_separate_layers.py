"""Stacked layers as separate arrays: the same numbers and memory, and no copies in a program."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoder import functional, random_decoder, random_ids

from lora_jax.models.parts.kv_cache import cached_step
from lora_jax.models.parts.separate_layers import Layers, separate, stacked


def layers(count=3, width=64):
    kernel = jnp.arange(count * width * width, dtype=jnp.float32).reshape(count, width, width)
    return {"layers": {"kernel": kernel, "bias": kernel[:, 0]}, "head": kernel[0]}


def pointers(tree):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]


def test_the_layers_share_the_memory_of_the_stack():
    tree = layers()
    apart = separate(tree)
    chex.assert_trees_all_equal(stacked(apart), tree)
    assert apart["head"] is tree["head"]
    kernel = tree["layers"]["kernel"]
    starts = [kernel.unsafe_buffer_pointer() + number * kernel[0].nbytes for number in range(3)]
    assert pointers(apart["layers"]["kernel"]) == starts


def test_one_array_in_two_places_stays_one():
    tree = layers()
    first, second = separate([tree, dict(tree, head=jnp.ones(2))])
    assert first["layers"]["kernel"] is second["layers"]["kernel"]


@pytest.mark.parametrize(
    ("tree", "unroll", "remat"),
    [
        (layers(), 1, False),
        (layers(), None, True),
        (layers(49), None, False),
        (layers(1), None, False),
        ({"layers": {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}}, None, False),
        ({"layers": {"a": np.ones((2, 3))}}, None, False),
        ({"blocks": {"a": jnp.ones((2, 3))}}, None, False),
        ({"layers": {"a": jax.ShapeDtypeStruct((2, 3), float)}}, None, False),
    ],
)
def test_what_stays_as_it_is(tree, unroll, remat):
    same = separate(tree, unroll, remat)
    assert not any(isinstance(each, Layers) for each in jax.tree.leaves(same, is_leaf=_is_layers))


def test_inside_a_program_a_tree_stays_as_it_is():
    assert jax.eval_shape(separate, layers()) == jax.eval_shape(layers)


def _is_layers(each):
    return isinstance(each, Layers)


def test_a_program_copies_no_layer():
    """The kernels of a decoder are operands of products as they come, with other results equal."""
    decoder = random_decoder("llama", num_hidden_layers=3)
    params, apply = functional(decoder)

    def run(params):
        text = jax.jit(lambda params: apply(stacked(params), random_ids())).lower(params).compile()
        return text(params), text.as_text()

    (expected, copying), (found, plain) = run(params), run(separate(params))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    sliced = re.compile(r" slice\(.*slice={\[\d:\d\], \[0:\d+\], \[0:\d+\]}")
    assert sliced.search(copying) and not sliced.search(plain)


def test_a_cached_step_of_separate_layers_is_that_of_stacked_ones():
    step, params = cached_step(random_decoder("llama"))
    run = jax.jit(lambda params: step(stacked(params), random_ids(), capacity=9))
    chex.assert_trees_all_close(run(separate(params)), run(params), atol=1e-6)
