"""Flax Linen modules as they come."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.case import Case, Normal, randomised


def _case(normal: Normal, module: nn.Module, *args: Any, **options: Any) -> Case:
    kwargs = options.pop("kwargs", {})
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))
    params = randomised(shapes, normal)
    options = {"targets": (".*kernel",), **options}
    return Case(module.apply, params, args, kwargs, **options)


def dense(normal: Normal) -> Case:
    return _case(normal, nn.Sequential([nn.Dense(6), nn.gelu, nn.Dense(3)]), normal(2, 3, 4))


def dense_general_batched(normal: Normal) -> Case:
    module = nn.DenseGeneral(3, axis=-1, batch_dims=(0,))
    return _case(normal, module, normal(2, 5, 4))


def attention(normal: Normal) -> Case:
    module = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6, out_features=4)
    mask = jnp.tril(jnp.ones((1, 1, 5, 5), bool))
    x = normal(2, 5, 4)
    return _case(normal, module, x, x, x, kwargs={"mask": mask, "deterministic": True})


def partitioned(normal: Normal) -> Case:
    """Layouts that travel with the parameters; `unbox` makes constraints of them."""
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    kernel = nn.with_partitioning(nn.initializers.ones, (None, "model"), mesh)
    module = nn.Sequential([nn.Dense(6, kernel_init=kernel), nn.Dense(4, kernel_init=kernel)])
    return _case(normal, module, normal(2, 4), targets=(".*kernel.*",))


class Tied(nn.Module):
    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(7, 4)
        x = nn.LayerNorm()(embed(ids))
        return embed.attend(nn.Dense(4)(x))


def tied_embedding(normal: Normal) -> Case:
    ids = jnp.array([[1, 6, 0], [3, 3, 2]])
    return _case(normal, Tied(), ids, targets=(".*kernel", ".*embedding"))


def convolution(normal: Normal) -> Case:
    module = nn.Sequential([nn.Conv(6, (3,)), nn.ConvTranspose(4, (2,))])
    return _case(normal, module, normal(2, 5, 4))


class Block(nn.Module):
    dropout: float = 0.3

    @nn.compact
    def __call__(self, x, deterministic: bool, mode: str = "plain"):
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(num_heads=2)(y, deterministic=deterministic)
        y = nn.Dropout(self.dropout)(x + y, deterministic=deterministic)
        y = y + nn.Dense(4)(nn.relu(nn.Dense(8)(y)))
        return (y, None) if mode == "scanned" else y


class Stack(nn.Module):
    """What Linen language models do: layers rematerialised, stacked and scanned."""

    @nn.compact
    def __call__(self, x, deterministic: bool):
        block = nn.remat(Block, prevent_cse=False, static_argnums=(2, 3))
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=3,
        )
        return layers()(x, deterministic, "scanned")[0]


def block_with_static_arguments(normal: Normal) -> Case:
    kwargs = {"deterministic": True, "mode": "plain"}
    return _case(normal, Block(), normal(2, 3, 4), kwargs=kwargs)


def scanned_and_rematerialised(normal: Normal) -> Case:
    return _case(normal, Stack(), normal(2, 3, 4), kwargs={"deterministic": True})
