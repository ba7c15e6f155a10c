"""A function of the zoo: a forward, its parameters and inputs, and what is expected of it."""

import zlib
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Normal = Callable[..., Array]
"""`normal(*shape)`: another random float64 array at every call."""


class Case(NamedTuple):
    forward: Callable[..., Any]
    params: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012
    targets: tuple[str, ...] = ("w.*",)
    merged: tuple[str, ...] = ()
    """Paths of targets that are expected to be merged somewhere."""
    rank: int = 2
    reverse: bool = True
    """False where reverse mode cannot pass (`while`): forward mode is compared instead."""


def cases(module: ModuleType) -> dict[str, Callable[[], Case]]:
    """Every public function of a module, each called with random numbers of its own."""
    makers = {
        f"{module.__name__.split('.')[-1]}.{name}": maker
        for name, maker in vars(module).items()
        if isinstance(maker, FunctionType)
        and maker.__module__ == module.__name__
        and not name.startswith("_")
    }
    return {name: seeded(name, maker) for name, maker in makers.items()}


def seeded(name: str, maker: Callable[[Normal], Case]) -> Callable[[], Case]:
    """The maker with random numbers that depend on the name alone."""

    def make() -> Case:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return maker(lambda *shape: jnp.asarray(rng.normal(size=shape)))

    return make


def randomised(tree: Any, normal: Normal) -> Any:
    """The tree with float64 numbers for its arrays or shapes, biases and scales included."""

    def leaf(value: Any) -> Any:
        if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.floating):
            return value
        return jnp.asarray(0.4 * np.asarray(normal(*value.shape)) + 0.1)

    return jax.tree.map(leaf, tree)
