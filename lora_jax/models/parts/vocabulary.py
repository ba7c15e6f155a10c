"""Extend a decoder's vocabulary: add new tokens to its embedding and head."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax import Array

from lora_jax.base import wide
from lora_jax.models.parts.decoder import Decoder


def extend_vocabulary(decoder: Decoder, count: int) -> Decoder:
    """A copy of the decoder with `count` new tokens after the existing ones.

    A new token's row is the mean of all existing rows, in the embedding and in an untied head. Its
    logits then start at an average level and disturb the other tokens least (Hewitt, 2021,
    "Initializing New Word Embeddings for Pretrained Language Models"; transformers'
    `mean_resizing` without its noise). Train the new rows with
    `variants.make("trainable_tokens", last=count)`, or adapt the whole embedding by any method;
    both also affect a tied head. An untied head has a column per token, not a row: adapt it with
    low rank, or train all of it.
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
    mean = matrix.mean(axis=axis, keepdims=True, dtype=wide(matrix.dtype)).astype(matrix.dtype)
    return jnp.concatenate([matrix, *[mean] * count], axis=axis)
