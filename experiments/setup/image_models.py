"""A small ViT and a small ConvNet as functions that a user would write (`own_model`)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


class ViT(nn.Module):
    """A vision transformer (arXiv 2010.11929): patches, blocks, the mean of tokens, a head."""

    outputs: int
    width: int = 64
    depth: int = 4
    heads: int = 4
    patch: int = 7

    @nn.compact
    def __call__(self, images: Array) -> Array:
        patches = (self.patch, self.patch)
        x = nn.Conv(self.width, patches, patches, name="patches")(images)
        x = x.reshape(x.shape[0], -1, self.width)
        x += self.param("positions", nn.initializers.normal(0.02), x.shape[1:])[None]
        for number in range(self.depth):
            attention = nn.MultiHeadDotProductAttention(self.heads, name=f"attention_{number}")
            x += attention(nn.LayerNorm()(x))
            inside = nn.gelu(nn.Dense(4 * self.width, name=f"up_{number}")(nn.LayerNorm()(x)))
            x += nn.Dense(self.width, name=f"down_{number}")(inside)
        return nn.Dense(self.outputs, name="head")(nn.LayerNorm()(x).mean(axis=1))


class ConvNet(nn.Module):
    """Three convolutions of stride 2, the mean of places, a head."""

    outputs: int
    width: int = 32

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = images
        for number in range(3):
            x = nn.Conv(self.width << number, (3, 3), (2, 2), name=f"conv_{number}")(x)
            x = nn.relu(nn.GroupNorm(8)(x))
        return nn.Dense(self.outputs, name="head")(x.mean(axis=(1, 2)))


def vit(
    key: Array, example: Mapping[str, Any], outputs: int, width: int = 64, depth: int = 4
) -> tuple[Any, ...]:
    """A ViT for batches with `images`, (B, H, W) or (B, H, W, C)."""
    return _model(ViT(outputs, width, depth), key, example)


def convnet(
    key: Array, example: Mapping[str, Any], outputs: int, width: int = 32
) -> tuple[Any, ...]:
    """A ConvNet for batches with `images`, (B, H, W) or (B, H, W, C)."""
    return _model(ConvNet(outputs, width), key, example)


def _model(module: nn.Module, key: Array, example: Mapping[str, Any]) -> tuple[Any, ...]:
    def forward(params: Any, images: Array) -> Any:
        return module.apply({"params": params}, images)

    params = jax.jit(module.init)(key, read(example))["params"]
    return forward, params, read


def read(batch: Mapping[str, Any]) -> Array:
    """The images of a batch, (B, H, W, C), from bytes to numbers around zero."""
    images = jnp.asarray(batch["images"], jnp.float32)
    images = images[..., None] if images.ndim == 3 else images
    return images / 127.5 - 1
