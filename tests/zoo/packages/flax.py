"""Flax: its own layers, in Linen and in NNX."""

import jax
from flax import linen, nnx

import lora_jax as lj
from zoo.family import Family


def gru() -> Family:
    model = linen.Sequential([linen.RNN(linen.GRUCell(16)), linen.Dense(4)])
    xs = jax.random.normal(jax.random.key(0), (3, 5, 8))
    params = jax.jit(model.init)(jax.random.key(1), xs)
    return Family(model.apply, params, (xs,))


def attention() -> Family:
    def block(rngs):
        attend = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
        return nnx.Sequential(nnx.LayerNorm(16, rngs=rngs), attend, nnx.Linear(16, 4, rngs=rngs))

    forward, params = lj.from_nnx(nnx.jit(lambda: block(nnx.Rngs(0)))())
    x = jax.random.normal(jax.random.key(1), (2, 6, 16))
    return Family(forward, params, (x,))


def convolutions() -> Family:
    model = linen.Sequential(
        [
            linen.Conv(8, (3, 3), strides=2),
            linen.gelu,
            linen.ConvTranspose(4, (2, 2), strides=(2, 2)),
        ]
    )
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    params = jax.jit(model.init)(jax.random.key(1), images)
    return Family(model.apply, params, (images,), "all-linear+conv")
