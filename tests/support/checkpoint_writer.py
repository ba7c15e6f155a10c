"""Trains until it is killed, and saves every step.

    python tests/support/checkpoint_writer.py FOLDER TIMES

Started by `test_checkpoint.py` in a process of its own. The state is a linear congruential
generator: exact, and known for any step without JAX.
"""

import os
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.training.checkpoint import Checkpoints


def start():
    w = jnp.arange(1 << 18, dtype=jnp.uint32)
    return {"step": jnp.uint32(0), "w": w, "key": jax.random.key(5)}


@partial(jax.jit, donate_argnums=0)
def advance(s):
    w = s["w"] * jnp.uint32(1664525) + jnp.uint32(1013904223)
    return {"step": s["step"] + jnp.uint32(1), "w": w, "key": jax.random.fold_in(s["key"], 1)}


def truth(step):
    w = np.arange(1 << 18, dtype=np.uint32)
    for _ in range(step):
        w = w * np.uint32(1664525) + np.uint32(1013904223)
    return w


def train_until_killed(folder):
    """Reports every step, after the number of its process."""
    print(os.getpid(), flush=True)
    with Checkpoints(folder) as saved:
        state, _, step = saved.restore(start()) or (start(), {}, 0)
        while True:
            state, step = advance(state), step + 1
            saved.save(step, state, {"step": step})
            for _ in range(20):  # lines that come while the save is under way
                print(step, flush=True)


if __name__ == "__main__":
    # Forked, as imports take seconds; so nothing above may compute with JAX.
    for _ in range(int(sys.argv[2])):
        if child := os.fork():
            os.waitpid(child, 0)
            print("ended", flush=True)
        else:
            train_until_killed(sys.argv[1])
