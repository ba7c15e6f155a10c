"""Adapters of a tiny function, kept where a store loads them from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import lora_jax as lj
import variants


def forward(params, x):
    return jnp.tanh(x @ params["up/kernel"]) @ params["down/kernel"]


PARAMS = {
    "up/kernel": jnp.linspace(-1, 1, 24, dtype=jnp.float32).reshape(4, 6),
    "down/kernel": jnp.linspace(1, -1, 18, dtype=jnp.float32).reshape(6, 3),
}
X = jnp.linspace(-2, 2, 8, dtype=jnp.float32).reshape(2, 4)


def begun(params=None, also_train=(), target="up/kernel", method="lora", **settings):
    """An adapter as `init` gives it; settings are those of its method."""
    lora = variants.make(method, **{"rank": 2, **settings})
    adapted = lj.adapt(forward, lora, target, also_train=also_train)
    return adapted.init(jax.random.key(0), PARAMS if params is None else params, X)


def numbered(start, number):
    """The adapter with other factors, which are known by a number."""
    trainable, frozen = start
    random = np.random.default_rng(number)
    own = jax.tree.map(
        lambda x: jnp.asarray(random.standard_normal(x.shape), x.dtype), trainable["adapters"]
    )
    return {**trainable, "adapters": own}, frozen


def answer(adapter, x=X):
    """What the function gives with one adapter, by NumPy."""
    trainable, frozen = adapter
    own = jax.tree.map(np.asarray, trainable["adapters"]["up/kernel"])
    scale = np.asarray(frozen.constants["up/kernel"]["scale"])
    up = np.asarray(PARAMS["up/kernel"]) + scale * own["a"].T @ own["b"]
    return np.tanh(np.asarray(x) @ up) @ np.asarray(PARAMS["down/kernel"])


@dataclasses.dataclass
class Disk:
    """The numbers of the adapters by name; a store's `load` function."""

    start: tuple
    numbers: dict[str, int]

    def __call__(self, name):
        if name not in self.numbers:
            raise lj.UnknownAdapterError(name, self.numbers)
        number = self.numbers[name]
        return numbered(self.start, number), f"digest {number}"
