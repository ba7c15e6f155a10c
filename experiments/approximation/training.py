"""Train LoRA of every rank, rate and decay on one pair of networks, as one compiled program.

As the authors' program did when it made the printed figure: every step draws its inputs anew, Adam
adds the decay to the gradient (PyTorch's `weight_decay`), and the last step is scored. (Since
November 2023 their program starts the generator again after every step, and so trains on two
batches alone; the printed numbers are older.)
"""

import dataclasses
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lora_jax as lj
import variants
from experiments.approximation.networks import Layer, Setting, apply, draw, mean_squared_error
from experiments.approximation.torch_random import TorchRandom

STEPS_AT_ONCE = 100
"""How many steps one call of the program takes; their inputs are drawn together."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """Every rank with every rate and decay; the defaults are the authors'."""

    ranks: tuple[int, ...] = tuple(range(1, 17))
    rates: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    decays: tuple[float, ...] = (0.0, 1e-4, 1e-3, 1e-2)
    steps: int = 5000
    std: float = 0.25

    def cells(self) -> list[tuple[int, float, float]]:
        """(rank, rate, decay) of every trial."""
        return list(itertools.product(self.ranks, self.rates, self.decays))


def train(
    setting: Setting, grid: Grid, seed: int, train_biases: bool, targets: str = ".*/w"
) -> tuple[list[float], list[float]]:
    """Train all cells of a grid on the networks of a seed.

    A trial of a rank is one of the largest rank whose other factors are zero: they stay zero, as
    each of two zero factors has a gradient of zero.

    Returns:
      The mean squared errors on the test inputs before and after training, in the order of
      `grid.cells`.
    """
    pair, cells = draw(setting, seed), grid.cells()
    frozen_network = [Layer(*map(jnp.asarray, layer)) for layer in pair.frozen]
    inputs, test = TorchRandom(seed), TorchRandom(seed).normal((setting.test, setting.width))
    most = max(grid.ranks)
    adapted = lj.adapt(
        lambda network, x: apply(network, x, setting.activation),
        variants.make("lora", rank=most, alpha=float(most)),
        targets=[targets],
        also_train=[".*/b"] if train_biases and setting.biases else [],
    )
    with warnings.catch_warnings():  # ranks up to the width are the question here
        warnings.simplefilter("ignore", lj.TrainingWarning)
        start, frozen = adapted.init(jax.random.key(0), frozen_network, test)
    drawn = {rank: pair.factors(rank, grid.std) for rank in grid.ranks}
    trials = _stack([_with_factors(start, drawn[rank], most) for rank, _, _ in cells])

    def loss(trainable: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        # The merged network takes one product a layer, where factors beside the weight take three.
        return mean_squared_error(adapted.merge(trainable, frozen), x, y, setting.activation)

    def step(trainable: Any, state: Any, rate: Any, decay: Any, x: Any, y: Any) -> tuple[Any, Any]:
        tx = optax.chain(optax.add_decayed_weights(decay), optax.adam(rate))
        updates, state = tx.update(jax.grad(loss)(trainable, x, y), state, trainable)
        return optax.apply_updates(trainable, updates), state

    steps = jax.vmap(step, (0, 0, 0, 0, None, None))
    rates, decays = (jnp.array(each) for each in list(zip(*cells, strict=True))[1:])

    @jax.jit
    def advance(trainable: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
        def one(carry: tuple[Any, Any], x: jax.Array) -> tuple[tuple[Any, Any], None]:
            y = apply(pair.target, x, setting.activation)
            return steps(*carry, rates, decays, x, y), None

        return jax.lax.scan(one, (trainable, state), x)[0]

    expected = apply(pair.target, test, setting.activation)
    score = jax.jit(jax.vmap(loss, (0, None, None)))
    before = score(trials, test, expected)
    init = optax.chain(optax.add_decayed_weights(0.0), optax.adam(0.0)).init
    state = jax.vmap(init)(trials)
    for count in _portions(grid.steps):
        x = inputs.normal((count, setting.batch, setting.width))
        trials, state = advance(trials, state, x)
    return np.asarray(before).tolist(), np.asarray(score(trials, test, expected)).tolist()


def _portions(steps: int) -> Iterator[int]:
    for start in range(0, steps, STEPS_AT_ONCE):
        yield min(STEPS_AT_ONCE, steps - start)


def _with_factors(start: Any, factors: list[np.ndarray], most: int) -> Any:
    """The trainable tree with A (the paper's B) as drawn, in the first of the largest rank."""
    adapters = {
        f"{layer}/w": {
            "a": jnp.pad(drawn.T, ((0, most - drawn.shape[1]), (0, 0))),
            "b": jnp.zeros((most, drawn.shape[0])),
        }
        for layer, drawn in enumerate(factors)
    }
    return {**start, "adapters": adapters}


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
