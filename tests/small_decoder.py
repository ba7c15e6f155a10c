"""Decoders of a few thousand random weights, made without compiling anything."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from make_fixtures.decoders import CASES

from lora_jax.models.decoder_families import decoder_family_of
from lora_jax.models.torch_names import path_of


def random_decoder(name="llama", seed=0, options=None, **changes):
    """The decoder of a fixture's config, changed; products keep the size of what passes through."""
    content = {**CASES[name], **changes}
    family = decoder_family_of(content)
    config, settings = family.config.from_json(content), options or {}
    abstract = nnx.eval_shape(lambda: family.decoder(config, **settings, rngs=nnx.Rngs(0)))
    graph, shapes = nnx.split(abstract)
    random = np.random.default_rng(seed)

    def draw(key_path, leaf):
        x, kind = random.standard_normal(leaf.shape), path_of(key_path).rpartition("/")[2]
        if kind == "kernel":
            x = 1.5 * x / np.sqrt(leaf.shape[-2])
        elif kind != "embedding":
            x = 0.3 * x + (kind == "scale")
        return jnp.asarray(x, leaf.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, shapes))


def functional(model, method="__call__"):
    """Parameters, and the compiled function of them."""
    graph, params = nnx.split(model)

    def call(params, *args, **kwargs):
        return getattr(nnx.merge(graph, params), method)(*args, **kwargs)

    return params, jax.jit(call)


def random_ids(batch=2, tokens=8, vocabulary=23, seed=0):
    ids = np.random.default_rng(seed).integers(0, vocabulary, (batch, tokens))
    return jnp.asarray(ids, jnp.int32)
