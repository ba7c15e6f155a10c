"""Models as a user would write them, of arrays `x` (B, 6) and `kind` (B,), for dotted names."""

import jax
import jax.numpy as jnp


def tiny(key, example, outputs, width=8):
    up, table, head = jax.random.split(key, 3)
    params = {
        "up": {"w": jax.random.normal(up, (example["x"].shape[1], width)) / 2},
        "kinds": jax.random.normal(table, (2, width)),
        "head": jax.random.normal(head, (width, outputs)) / 3,
    }
    return forward, params, lambda batch: (batch["x"] / 2, batch["kind"])


def forward(params, x, kind, rng=None):
    hidden = jnp.tanh(x @ params["up"]["w"] + params["kinds"][kind])
    if rng is not None:
        hidden = jnp.where(jax.random.bernoulli(rng, 0.5, hidden.shape), 2 * hidden, 0)
    return hidden @ params["head"]


def of_six_rows(key, example, outputs):
    """A mistake: it reads batches of one size alone."""
    made, params, read = tiny(key, example, outputs)
    return lambda params, x, kind: made(params, x.reshape(1, 6), kind), params, read


def one_output(key, example, outputs):
    return tiny(key, example, 1)


def a_model(key, example, outputs):
    return {"params": {}}


def parameters(key, example, outputs):
    return tiny(key, example, outputs)[1:]


def no_example(key, outputs):
    return tiny(key, {}, outputs)


NUMBER = 1
