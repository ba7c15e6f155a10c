"""Weights that no rule follows to their products: merged, and selected all the same."""

import jax
import jax.numpy as jnp
from jax import lax

from zoo.case import Case, Normal


def by_platform(normal: Normal) -> Case:
    def forward(p, x):
        return lax.platform_dependent(
            x, p["w"], cpu=lambda x, w: x @ w, default=lambda x, w: jnp.sin(x @ w)
        )

    return Case(forward, {"w": normal(4, 6)}, (normal(3, 4),), merged=("w",))


def vmapped_cond(normal: Normal) -> Case:
    def forward(p, x):
        return jax.vmap(
            lambda row: lax.cond(row[0] > 0, lambda r: r @ p["w1"], lambda r: r @ p["w2"], row)
        )(x)

    params = {"w1": normal(4, 5), "w2": normal(4, 5)}
    return Case(forward, params, (normal(3, 4),), merged=("w1", "w2"))


def vmapped_switch_over_experts(normal: Normal) -> Case:
    def forward(p, x, experts):
        branches = [lambda row, i=i: row @ p["w"][i] for i in range(3)]
        return jax.vmap(lambda row, i: lax.switch(i, branches, row))(x, experts)

    inputs = normal(4, 4), jnp.array([2, 0, 1, 1])
    return Case(forward, {"w": normal(3, 4, 5)}, inputs, merged=("w",))


def repeated_heads(normal: Normal) -> Case:
    """Grouped queries: each head of keys serves several."""

    def forward(p, x):
        return jnp.einsum("td,hdk->thk", x, jnp.repeat(p["w"], 2, axis=0))

    return Case(forward, {"w": normal(2, 4, 3)}, (normal(3, 4),), merged=("w",))


def repeated_for_a_batch(normal: Normal) -> Case:
    def forward(p, x):
        return jnp.matmul(x[:, None], jnp.broadcast_to(p["w"], (3, 4, 5)))

    return Case(forward, {"w": normal(4, 5)}, (normal(3, 4),), merged=("w",))


def dropped_connections(normal: Normal) -> Case:
    def forward(p, x, key):
        mask = jax.random.bernoulli(key, 0.5, (4, 5))
        noise = jax.random.normal(jax.random.fold_in(key, 1), (5, 6), jnp.float64)
        return x @ (p["w1"] * mask.astype(jnp.float64)) @ (p["w2"] + noise)

    params = {"w1": normal(4, 5), "w2": normal(5, 6)}
    return Case(forward, params, (normal(3, 4), jax.random.key(0)), merged=("w1", "w2"))


def scan_that_decays_a_weight(normal: Normal) -> Case:
    def forward(p, x):
        def step(carry, _):
            y, w = carry
            return (jnp.tanh(y @ w), w * 0.9), None

        (y, w), _ = lax.scan(step, (x, p["w"]), length=3)
        return y @ w

    return Case(forward, {"w": normal(4, 4)}, (normal(3, 4),), merged=("w",))


def fast_weights(normal: Normal) -> Case:
    """A weight that the inputs change as they come."""

    def forward(p, x):
        def step(w, row):
            return w + 0.1 * jnp.outer(row, row), row @ w

        return lax.scan(step, p["w"], x)[1]

    return Case(forward, {"w": normal(4, 4)}, (normal(3, 4),), merged=("w",))


def conjugate_gradients(normal: Normal) -> Case:
    def forward(p, b):
        return jax.scipy.sparse.linalg.cg(lambda v: p["w"].T @ (p["w"] @ v) + v, b, maxiter=3)[0]

    return Case(forward, {"w": normal(4, 5)}, (normal(5),), merged=("w",))


def convolution_with_the_weight_on_the_left(normal: Normal) -> Case:
    def forward(p, x):
        return lax.conv_general_dilated(
            p["w"], x, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    return Case(forward, {"w": normal(6, 3, 4)}, (normal(3, 4, 2),), merged=("w",))
