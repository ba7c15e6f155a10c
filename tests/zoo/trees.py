"""Parameter trees and arguments of every kind."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.case import Case, Normal


class Layer(NamedTuple):
    w: jax.Array
    b: jax.Array


def nested_containers(normal: Normal) -> Case:
    """Lists, tuples, named tuples, None and settings that are not arrays, all in one tree."""

    def forward(params, x):
        layers, (head, missing), scale, name = params
        assert missing is None and name == "model"
        for layer in layers:
            x = jnp.tanh(x @ layer.w + layer.b)
        return x @ head["w"] * scale

    layers = [Layer(normal(4, 4), normal(1, 4)) for _ in range(3)]
    params = (layers, ({"w": normal(4, 2)}, None), 0.5, "model")
    return Case(forward, params, (normal(3, 4),), targets=("w",))


def integer_keys(normal: Normal) -> Case:
    def forward(p, x):
        return x @ p[0] @ p[10]

    return Case(forward, {0: normal(4, 4), 10: normal(4, 4)}, (normal(3, 4),), targets=(r"\d+",))


def static_arguments(normal: Normal) -> Case:
    def forward(p, x, mode, options=None, *, deterministic=False, scale=1.0, axis=None):
        assert mode == "train" and deterministic and options == {"deep": [True, None]}
        y = x @ p["w"] * scale
        return {"y": y, "sum": y.sum(axis), "none": None, "number": 3, "list": [y, (y,)]}

    kwargs = {"deterministic": True, "scale": 2.0, "axis": None, "options": {"deep": [True, None]}}
    return Case(forward, {"w": normal(4, 6)}, (normal(3, 4), "train"), kwargs)


def integer_and_boolean_parameters(normal: Normal) -> Case:
    def forward(p, x):
        return (x @ p["w"])[:, p["order"]] * p["on"].astype(jnp.float64)[None]

    params = {
        "w": normal(4, 3),
        "order": jnp.array([2, 0, 1]),
        "on": jnp.array([True, False, True]),
    }
    return Case(forward, params, (normal(3, 4),), targets=("w",))


def keys_among_the_parameters(normal: Normal) -> Case:
    """As in every NNX model with `Dropout(rngs=...)`."""

    def forward(p, x):
        return x @ p["w"] + jax.random.normal(p["key"], (3, 6), jnp.float64)

    params = {
        "w": normal(4, 6),
        "key": jax.random.key(0),
        "keys": jax.random.split(jax.random.key(1)),
    }
    return Case(forward, params, (normal(3, 4),), targets=("w",))


def types_as_settings(normal: Normal) -> Case:
    """The classes of NumPy's numbers have a shape and a dtype, too."""

    def forward(p, x, *, dtype):
        return x.astype(dtype) @ p["w"].astype(p["type"]), x.astype(np.dtype(dtype))

    params = {"w": normal(4, 6), "type": np.float64}
    return Case(forward, params, (normal(3, 4),), {"dtype": np.float64}, targets=("w",))
