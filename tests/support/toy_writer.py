"""A small recurrent language model that is quickly compiled, and the same in NumPy.

What follows depends on every token before, so that a cache of another text shows at once.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

WORDS, WIDTH = 5, 6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    hidden: jax.Array

    def rows(self, index):
        return State(self.hidden[index])


def random_weights(seed, words=WORDS, scale=1.5):
    random = np.random.default_rng(seed)
    shapes = {"words": (words, WIDTH), "turn": (WIDTH, WIDTH), "head": (WIDTH, words)}
    return {name: scale * random.standard_normal(shape) for name, shape in shapes.items()}


def step(weights, input_ids, attention_mask=None, cache=None, capacity=None):
    """The interface of `lora_jax.generation.generate.Step`."""
    rows, tokens = input_ids.shape
    mask = jnp.ones((rows, tokens), bool) if attention_mask is None else attention_mask.astype(bool)
    if cache is None:
        cache = State(jnp.zeros((rows, WIDTH), weights["turn"].dtype))
    hidden = cache.hidden
    for i in range(tokens):
        new = jnp.tanh(hidden @ weights["turn"] + weights["words"][input_ids[:, i]])
        hidden = jnp.where(mask[:, i, None], new, hidden)
    return hidden @ weights["head"], State(hidden)


def log_probabilities(weights, text):
    """Of what follows a list of tokens, (words,) in NumPy."""
    hidden = np.zeros(WIDTH)
    for token in text:
        hidden = np.tanh(hidden @ weights["turn"] + weights["words"][token])
    logits = hidden @ weights["head"]
    return logits - np.log(np.exp(logits).sum())
