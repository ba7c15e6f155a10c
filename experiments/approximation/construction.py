"""The adapters that the proof of arXiv 2310.17513 constructs (theorem 3, and lemma 1 for a layer).

A target layer T is represented by the frozen layers W_1 ... W_L that stand for it, x W_1 ... W_L.
The singular vectors of T - W_1 ... W_L are shared out over the layers, rank of them to each: exact
once rank * L reaches the width. Biases so large that no ReLU cuts anything join the layers.
"""

import functools
from collections.abc import Sequence

import numpy as np

from experiments.approximation.networks import Layer, Pair, Setting, apply
from experiments.approximation.torch_random import TorchRandom


def construct(setting: Setting, pair: Pair, seed: int, rank: int) -> list[Layer]:
    """The frozen network with the proof's adapters of a rank merged into it.

    Args:
      setting: which networks these are.
      pair: the target and the frozen network.
      seed: draws the inputs on which the biases are made large enough.
      rank: the rank of each layer's update.
    """
    adapted: list[Layer] = []
    z = TorchRandom(seed).normal((setting.batch, setting.width))
    for layer, part in zip(pair.target, setting.parts(), strict=True):
        weights = _adapted_weights(np.asarray(layer.w), [w for w, _ in pair.frozen[part]], rank)
        passed = np.zeros(setting.width, np.float32)  # what the larger biases add to the output
        for index, w in enumerate(weights):
            z = z @ w
            if index == len(weights) - 1 or not setting.biases:
                adapted.append(Layer(w, np.asarray(layer.b) - passed))
                continue
            bias = np.full(setting.width, -2 * min(float(z.min()), 0.0), np.float32)
            z = z + bias
            passed = passed + bias @ _product(weights[index + 1 :], setting.width)
            adapted.append(Layer(w, bias))
    return adapted


def error_on_test(setting: Setting, pair: Pair, network: Sequence[Layer], seed: int) -> float:
    """The mean squared error on the test inputs that a seed draws."""
    x = TorchRandom(seed).normal((setting.test, setting.width))
    y = apply(pair.target, x, setting.activation)
    return float(np.mean((apply(network, x, setting.activation) - y) ** 2))


def _adapted_weights(target: np.ndarray, frozen: list, rank: int) -> list[np.ndarray]:
    """The frozen weights plus their updates of a rank; float32, as the authors compute."""
    weights, width = [np.asarray(w) for w in frozen], len(target)
    missing = target - _product(weights, width)
    left = np.linalg.svd(missing)[0]
    before, adapted = np.eye(width, dtype=np.float32), []
    for index, w in enumerate(weights):
        own = left[:, rank * index : rank * (index + 1)]
        down = np.linalg.inv(before) @ own
        up = own.T @ missing @ np.linalg.inv(_product(weights[index + 1 :], width))
        adapted.append(w + down @ up)
        before = before @ adapted[-1]
    return adapted


def _product(weights: Sequence[np.ndarray], width: int) -> np.ndarray:
    return functools.reduce(np.matmul, weights, np.eye(width, dtype=np.float32))
