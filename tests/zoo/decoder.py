"""A small transformer that uses most of what models do: the subject of tests of one thing each."""

import jax
import jax.numpy as jnp
from jax import lax

from zoo.case import Case, Normal

L, D, H, K, F, V = 3, 8, 2, 4, 12, 16


def decoder(normal: Normal) -> Case:
    """Tied table, stacked layers scanned and rematerialised, heads apart, a fused projection."""
    layers = {
        "qkv": normal(L, D, 3, H, K),
        "out": normal(L, H, K, D),
        "up": normal(L, D, F),
        "down": normal(L, D, F),
        "bias": normal(L, 1, F),
    }
    params = {"table": normal(V, D), "layers": layers, "head": normal(D, 4)}
    params = jax.tree.map(lambda leaf: 0.4 * leaf, params)
    ids = jnp.array([[1, 2, 3, 15], [4, 5, 0, 0]])
    targets = ("table", "qkv", "out", "up", "down", "head")
    return Case(_forward, params, (ids,), targets=targets)


def _forward(p, ids):
    def layer(x, w):
        q, k, v = jnp.einsum("btd,dchk->cbthk", x, w["qkv"])
        scores = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
        x = x + jnp.einsum("bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", scores, v), w["out"])
        return x + jax.nn.gelu(x @ w["up"] + w["bias"][None]) @ w["down"].T, None

    x, _ = lax.scan(jax.checkpoint(layer), p["table"][ids], p["layers"])
    return {"logits": x @ p["table"].T, "class": x[:, 0] @ p["head"]}
