"""Flax NNX modules, through `lj.from_nnx` or with `nnx.split` and `nnx.merge` by hand."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import lora_jax as lj
from zoo.case import Case, Normal, randomised


def _case(normal: Normal, model: nnx.Module, *args: Any, **options: Any) -> Case:
    forward, params = lj.from_nnx(model)
    options = {"targets": (".*kernel",), **options}
    return Case(forward, randomised(params, normal), args, **options)


def _rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def linear(normal: Normal) -> Case:
    model = nnx.Sequential(nnx.Linear(4, 6, rngs=_rngs()), nnx.relu, nnx.Linear(6, 3, rngs=_rngs()))
    return _case(normal, model, normal(2, 3, 4))


def attention(normal: Normal) -> Case:
    model = nnx.MultiHeadAttention(
        num_heads=2, in_features=4, qkv_features=6, dropout_rate=0.5, decode=False, rngs=_rngs()
    )
    return _case(normal, nnx.view(model, deterministic=True), normal(2, 5, 4))


def embed(normal: Normal) -> Case:
    class Tied(nnx.Module):
        def __init__(self):
            self.embed = nnx.Embed(7, 4, dtype=jnp.float64, rngs=_rngs())
            self.dense = nnx.Linear(4, 4, rngs=_rngs())

        def __call__(self, ids):
            return self.embed.attend(self.dense(self.embed(ids)))

    ids = jnp.array([[1, 6, 0], [3, 3, 2]])
    return _case(normal, Tied(), ids, targets=(".*kernel", ".*embedding"))


def convolution(normal: Normal) -> Case:
    model = nnx.Conv(4, 6, (3, 2), feature_group_count=2, rngs=_rngs())
    return _case(normal, model, normal(2, 5, 5, 4), merged=("kernel",))


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.up = nnx.Linear(4, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.down = nnx.Linear(8, 4, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return x + self.down(self.dropout(jnp.tanh(self.up(self.norm(x)))))


class Layers(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([Block(rngs) for _ in range(3)])

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.remat(lambda layer, x: layer(x))(layer, x)
        return x


def list_of_layers(normal: Normal) -> Case:
    case = _case(normal, Layers(_rngs()), normal(5, 4))
    return case._replace(params=jax.tree.map(_abs_if_float, case.params))


def _abs_if_float(leaf: Any) -> Any:
    return jnp.abs(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


class Scanned(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return nnx.Linear(4, 4, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def run(x, layer):
            return jnp.tanh(layer(x))

        return run(x, self.layers)


def scanned_and_rematerialised(normal: Normal) -> Case:
    return _case(normal, Scanned(_rngs()), normal(2, 4))


def split_by_hand(normal: Normal) -> Case:
    """Parameters alone, the rest of the state closed over; a dictionary instead of a `State`."""
    graph, params, rest = nnx.split(Block(_rngs()), nnx.Param, ...)

    def forward(p, x):
        return nnx.merge(graph, nnx.State(p), rest)(x.astype(jnp.float64))

    params = nnx.to_pure_dict(randomised(params, normal))
    return Case(forward, params, (normal(5, 4),), targets=(".*kernel",))
