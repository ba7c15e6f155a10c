"""The networks of arXiv 2310.17513: a target, and a deeper frozen one that is adapted to it.

As the authors' program draws them (github.com/UW-Madison-Lee-Lab/Expressive_Power_of_LoRA): linear
layers as `torch.nn.Linear` starts them, an activation after each, the last one, too.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.approximation.torch_random import TorchRandom


class Layer(NamedTuple):
    """x @ w + b: w of shape (in, out), b of shape (out,)."""

    w: Array | np.ndarray
    b: Array | np.ndarray


Network = Sequence[Layer]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One pair of networks, and on how many inputs it is trained and scored.

    The defaults are those of the paper's figure `lora_bitfit_approx`.

    Attributes:
      pretrained: train the whole frozen network for the target first, by Adam at the rate 1e-3,
        until the loss is below a third of its start (1,000 steps at most).
      equal_singular_values: the target is the product of the frozen weights plus a multiple of
        the identity, as the authors' `uniform_singular_values`.
      batch: how many inputs each step draws.
      test: how many inputs the result is scored on.
    """

    width: int = 16
    target_depth: int = 1
    frozen_depth: int = 2
    activation: Literal["relu", "linear"] = "relu"
    biases: bool = True
    pretrained: bool = False
    equal_singular_values: bool = False
    batch: int = 256
    test: int = 5000

    def __post_init__(self):
        if not 1 <= self.target_depth <= self.frozen_depth:
            raise ValueError(
                f"the target has {self.target_depth} layers and the frozen network "
                f"{self.frozen_depth}: the target needs one layer, and no more than the other"
            )

    def parts(self) -> list[slice]:
        """Which layers of the frozen network stand for each layer of the target."""
        each = self.frozen_depth // self.target_depth
        starts = [each * layer for layer in range(self.target_depth)]
        return [
            slice(start, end)
            for start, end in zip(starts, [*starts[1:], self.frozen_depth], strict=True)
        ]


class Pair(NamedTuple):
    """Both networks, and where the factors B of the frozen one start for each rank."""

    target: list[Layer]
    frozen: list[Layer]
    factors: Callable[[int, float], list[np.ndarray]]


def apply(network: Network, x: Array | np.ndarray, activation: str = "relu") -> Array:
    """The outputs for x of shape (inputs, width)."""
    for w, b in network:
        x = x @ w + b[None]
        x = jax.nn.relu(x) if activation == "relu" else x
    return jnp.asarray(x)


def mean_squared_error(network: Network, x: Array, y: Array, activation: str = "relu") -> Array:
    return jnp.mean((apply(network, x, activation) - y) ** 2)


def draw(setting: Setting, seed: int) -> Pair:
    """Draw both networks in the authors' order; for a pretrained one, train it."""
    random, width = TorchRandom(seed), setting.width
    target = _layers(random, setting, setting.target_depth)
    frozen = _layers(random, setting, setting.frozen_depth)

    def factors(rank: int, std: float) -> list[np.ndarray]:
        """B of each layer, (width, rank), which the authors draw after the layers."""
        again, drawn = TorchRandom(seed), []
        for depth in (setting.target_depth, setting.frozen_depth):
            _layers(again, setting, depth)
        for _ in range(setting.frozen_depth):
            again.normal((width, rank))  # A and B are drawn once, and then filled anew
            again.normal((width, rank))
            drawn.append(again.normal((width, rank), std))
        return drawn

    if setting.equal_singular_values:
        target = [
            layer._replace(w=_equal_singular_values(layer, frozen[part]))
            for layer, part in zip(target, setting.parts(), strict=True)
        ]
    if setting.pretrained:
        frozen = _pretrain(setting, seed, target, frozen)
    return Pair(target, frozen, factors)


def _layers(random: TorchRandom, setting: Setting, depth: int) -> list[Layer]:
    width, bound = setting.width, 1 / math.sqrt(setting.width)
    drawn = []
    for _ in range(depth):
        w = random.uniform((width, width), bound).T
        b = random.uniform((width,), bound) if setting.biases else np.zeros(width, np.float32)
        drawn.append(Layer(w, b))
    return drawn


def _equal_singular_values(target: Layer, frozen: Network) -> np.ndarray:
    product = functools.reduce(np.matmul, [np.asarray(layer.w) for layer in frozen])
    mean = np.linalg.svd(target.w - product, compute_uv=False).mean()
    return (product + mean * np.eye(len(product))).astype(np.float32)


def _pretrain(
    setting: Setting, seed: int, target: Network, network: list[Layer], steps: int = 1000
) -> list[Layer]:
    """Train all of a network for the target, until its loss is a third of the first one."""
    tx, random = optax.adam(1e-3), TorchRandom(seed)

    @jax.jit
    def step(network: list[Layer], state: optax.OptState, x: Array):
        y = apply(target, x, setting.activation)
        loss, slopes = jax.value_and_grad(mean_squared_error)(network, x, y, setting.activation)
        if not setting.biases:
            slopes = [layer._replace(b=jnp.zeros_like(layer.b)) for layer in slopes]
        updates, state = tx.update(slopes, state)
        return optax.apply_updates(network, updates), state, loss

    network = [Layer(*map(jnp.asarray, layer)) for layer in network]
    state, first = tx.init(network), math.inf
    for count in range(steps):
        after, state, loss = step(network, state, random.normal((setting.batch, setting.width)))
        if count == 0:
            first = float(loss)
        elif float(loss) < first / 3:
            break
        network = after
    return network
