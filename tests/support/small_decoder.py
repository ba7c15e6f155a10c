"""Decoders of a few thousand random weights, made without compiling anything."""

import jax.numpy as jnp
import numpy as np
from drawn_model import drawn, functional as functional
from flax import nnx
from make_fixtures.decoders import CASES

from lora_jax.models import families


def random_decoder(name="llama", seed=0, options=None, **changes):
    """The decoder of a fixture's config, changed; products keep the size of what passes through."""
    content = {**CASES[name], **changes}
    family = families.family_of(content)
    config, settings = family.config.from_json(content), options or {}
    return drawn(lambda: family.model(config, **settings, rngs=nnx.Rngs(0)), seed)


def random_ids(batch=2, tokens=8, vocabulary=23, seed=0):
    ids = np.random.default_rng(seed).integers(0, vocabulary, (batch, tokens))
    return jnp.asarray(ids, jnp.int32)
