"""A decoder with more words: rows for new tokens in its embedding and head."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax import Array

from lora_jax.models.parts.decoder import Decoder


def extend_vocabulary(decoder: Decoder, count: int) -> Decoder:
    """The same decoder with `count` new tokens after those it has; the old one stays as it is.

    New rows are the mean of all others, in the embedding and, where it is not tied, in the head:
    their logits begin where those of a token of no meaning would, and disturb the others least
    (Hewitt, 2021, "Initializing New Word Embeddings for Pretrained Language Models"; transformers'
    `mean_resizing` without its noise). Train them by `variants.make("trainable_tokens",
    last=count)`, or adapt the whole embedding by any method; both act on a tied head as well. A
    head of its own has a column for each token, not a row: adapt it by low rank, or train it whole.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    graph, params = nnx.split(decoder)
    model = nnx.merge(graph, params)
    model.embedding.embedding = nnx.Param(_with_mean(model.embedding.embedding[...], count, 0))
    if not model.config.tie_word_embeddings:
        model.head.kernel = nnx.Param(_with_mean(model.head.kernel[...], count, 1))
    model.config = dataclasses.replace(model.config, vocab_size=model.config.vocab_size + count)
    return model


def _with_mean(matrix: Array, count: int, axis: int) -> Array:
    mean = matrix.mean(axis=axis, keepdims=True, dtype=jnp.float32).astype(matrix.dtype)
    return jnp.concatenate([matrix, *[mean] * count], axis=axis)
