"""foundax: Equinox models of partial differential equations."""

import foundax
import jax

from zoo.family import Family


def fourier_operator() -> Family:
    model = foundax.fno1d(2, 8, n_modes=4, n_layers=2, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (16, 2))
    return Family(lambda model, x: model(x), model, (x,), "all-linear+conv")


def deep_operator() -> Family:
    sizes = {"n_sensors": 12, "basis_functions": 8, "hidden_dim": 16, "n_layers": 2}
    model = foundax.deeponet(**sizes, key=jax.random.key(0))
    values = jax.random.normal(jax.random.key(1), (12,))
    points = jax.random.normal(jax.random.key(2), (5, 1))
    return Family(lambda model, *inputs: model(*inputs), model, (values, points))


def unet() -> Family:
    model = foundax.unet1d(2, 1, depth=2, wf=2, norm="layer", key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (16, 2))
    return Family(lambda model, x: model(x), model, (x,), "all-linear+conv")
