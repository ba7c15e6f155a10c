"""A net of a stack of two layers and one more, with a method on all of them."""

import jax.numpy as jnp
import numpy as np
import zoo.check as check
from jax import lax

import lora_jax as lj


def two_layers(params, x):
    x = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])[0]
    return x @ params["w"] + params["bias"][None]


def training(variant, **options):
    shapes = {"stack": (2, 6, 6), "w": (6, 5), "bias": (5,)}
    params = check.random_like({n: np.zeros(shape) for n, shape in shapes.items()}, 0)
    x = check.random_like(np.zeros((4, 6)), 1)
    adapted = lj.adapt(two_layers, variant, ["stack", "w"], also_train="bias", **options)
    return adapted, params, x
