"""Prompts, a toy that writes quickly, and searches for texts by their definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import toy_writer

PROMPTS = [[3, 1, 4, 1, 2], [4, 2], [1, 3, 3, 4]]


def padded(prompts, sides="rrl", pad=8):
    """Prompts as (ids, mask), each padded on its own side."""
    width = max(map(len, prompts))
    ids, mask = np.full((2, len(prompts), width), pad)
    for row, (prompt, side) in enumerate(zip(prompts, sides, strict=False)):
        here = slice(0, len(prompt)) if side == "r" else slice(width - len(prompt), width)
        mask[row] = 0
        ids[row, here], mask[row, here] = prompt, 1
    return jnp.asarray(ids, jnp.int32), jnp.asarray(mask)


def toy(seed, **options):
    weights = toy_writer.random_weights(seed, **options)
    return weights, (jax.tree.map(jnp.asarray, weights),)


def greedy(log_p, prompt, ends, limit):
    """Greedily by the definition: log_p(text) gives the log-probabilities of what follows."""
    text = list(prompt)
    while len(text) < len(prompt) + limit:
        text.append(int(np.argmax(log_p(text))))
        if text[-1] in ends:
            break
    return text[len(prompt) :]


def completes(text, word, size):
    """Whether a word would complete so many in a row that are in the text already."""
    tail = [*text[len(text) - size + 1 :], word] if size > 1 else [word]
    inside = [text[i : i + size] for i in range(len(text) - size + 1)]
    return size > 0 and len(text) >= size and tail in inside


def search(log_p, prompt, *, ends=(0,), limit=6, beams, penalty, size=0, own=False, early=False):
    """The search by its definition, text by text, best first."""
    running, finished = [([], 0.0)], []
    for length in range(1, limit + 1):
        candidates = [
            ([*text, word], total + p)
            for text, total in running
            for word, p in enumerate(log_p([*prompt, *text]))
            if not completes(text if own else [*prompt, *text], word, size)
        ]
        candidates.sort(key=lambda each: -each[1])
        candidates = candidates[: max(2, 1 + len(ends)) * beams]
        over = [text[-1] in ends or length == limit for text, _ in candidates]
        ended = [(t, s / length**penalty) for t, s in itertools.compress(candidates[:beams], over)]
        finished = sorted([*finished, *ended], key=lambda each: -each[1])[:beams]
        running = [each for each, ends_now in zip(candidates, over, strict=True) if not ends_now]
        running = running[:beams]
        if not running or (early is True and len(finished) == beams):
            break
        longest = limit if early == "never" and penalty > 0 else length
        if len(finished) == beams and running[0][1] / longest**penalty <= finished[-1][1]:
            break
    return finished
