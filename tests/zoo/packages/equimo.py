"""Equimo: Equinox modules, called with a key or told not to train."""

import jax
from equimo.language.models import TextTransformerEncoder
from equimo.vision.models.convnext import ConvNeXt
from equimo.vision.models.vit import VisionTransformer

from zoo.family import Family


def vision_transformer() -> Family:
    key = jax.random.key(0)
    model = VisionTransformer(
        16, 3, 16, patch_size=8, num_heads=2, depths=[1], num_classes=4, reg_tokens=0, key=key
    )
    image = jax.random.normal(jax.random.key(1), (3, 16, 16))
    return Family(lambda model, x: model(x, key=key, inference=True), model, (image,))


def convnext() -> Family:
    key = jax.random.key(0)
    model = ConvNeXt(3, dims=[8, 16], depths=[1, 1], num_classes=4, key=key)
    image = jax.random.normal(jax.random.key(1), (3, 32, 32))
    return Family(
        lambda model, x: model(x, key=key, inference=True), model, (image,), "all-linear+conv"
    )


def text_encoder() -> Family:
    model = TextTransformerEncoder(16, 2.0, 1, 2, 50, key=jax.random.key(0))
    ids = jax.random.randint(jax.random.key(1), (6,), 0, 50)
    paddings = jax.numpy.zeros(6)
    return Family(lambda model, *row: model(*row, inference=True), model, (ids, paddings))
