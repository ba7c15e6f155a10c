"""Functions inside functions: blocks, calls, branches, unbounded loops, custom derivatives."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from zoo.case import Case, Normal


def _layer(x, w):
    return jnp.tanh(x @ w)


def _over_layers(normal: Normal, forward, count: int = 4) -> Case:
    return Case(forward, {"w": normal(count, 4, 4)}, (normal(3, 4),))


def checkpointed(normal: Normal) -> Case:
    def forward(p, x):
        layer = jax.checkpoint(_layer)
        saving = jax.checkpoint(_layer, policy=jax.checkpoint_policies.dots_saveable)
        free = jax.checkpoint(_layer, prevent_cse=False)
        for i, one in enumerate((layer, saving, free)):
            x = one(x, p["w"][i])
        return lax.scan(lambda x, w: (layer(x, w), None), x, p["w"])[0]

    return _over_layers(normal, forward)


def checkpoint_that_returns_a_weight(normal: Normal) -> Case:
    def forward(p, x):
        return x @ jax.checkpoint(lambda w: w.T)(p["w"])

    return Case(forward, {"w": normal(6, 4)}, (normal(3, 4),), merged=("w",))


def inner_jit(normal: Normal) -> Case:
    @jax.jit
    def layer(x, w):
        return jax.jit(_layer)(x, w)

    @functools.partial(jax.jit, static_argnums=1, static_argnames="flag")
    def cast(w, dtype, flag=None):
        return w.astype(dtype)

    def forward(p, x):
        x = layer(layer(x, p["w1"]), p["w2"])
        return layer(x, jax.jit(lambda w: w.T)(p["w1"])) @ cast(p["w2"], jnp.float64, flag="a")

    return Case(forward, {"w1": normal(4, 4), "w2": normal(4, 4)}, (normal(3, 4),))


def inner_jit_with_shardings(normal: Normal) -> Case:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    layer = jax.jit(_layer, out_shardings=rows)

    def forward(p, x):
        return lax.with_sharding_constraint(layer(x, p["w"]), rows)

    return Case(forward, {"w": normal(4, 4)}, (normal(2, 4),), merged=("w",))


def cond(normal: Normal) -> Case:
    def forward(p, x):
        y = lax.cond(x[0, 0] > 0, lambda x: x @ p["w1"], lambda x: jnp.sin(x @ p["w2"]), x)
        return lax.switch(2, [lambda: y, lambda: y @ p["w2"], lambda: y @ p["w1"]])

    return Case(forward, {"w1": normal(4, 4), "w2": normal(4, 4)}, (normal(3, 4),))


def cond_that_casts(normal: Normal) -> Case:
    def forward(p, x):
        return x @ lax.cond(x[0, 0] > 0, lambda: p["w"].T, lambda: p["w"].T * 2)

    return Case(forward, {"w": normal(6, 4)}, (normal(3, 4),), merged=("w",))


def fori_loop(normal: Normal) -> Case:
    def forward(p, x):
        x = lax.fori_loop(0, 4, lambda i, x: _layer(x, p["w"][i]), x)
        return lax.fori_loop(0, 2, lambda i, x: x @ p["w"][0], x)

    return _over_layers(normal, forward)


def while_loop(normal: Normal) -> Case:
    """Weights read by the test and by the body, carried and indexed; no reverse mode through it."""

    def forward(p, x, n):
        def test(state):
            i, y, w = state
            return (i < n) & ((lax.stop_gradient(y) @ w).sum() < 1e9)

        def body(state):
            i, y, w = state
            return i + 1, _layer(y, p["w"][i]) @ w, w

        _, y, w = lax.while_loop(test, body, (0, x, p["w0"]))
        return y @ w

    params = {"w": normal(4, 4, 4), "w0": normal(4, 4)}
    return Case(forward, params, (normal(3, 4), jnp.array(3)), reverse=False)


def vmapped_while_of_different_lengths(normal: Normal) -> Case:
    def forward(p, x):
        def goes_on(state):
            return state.max() + jnp.tanh(lax.stop_gradient(state) @ p["w"]).min() < 3.0

        def row(x):
            return lax.while_loop(goes_on, lambda s: s + _layer(s, p["w"]) ** 2 + 0.3, x)

        return jax.vmap(row)(x)

    return Case(forward, {"w": normal(4, 4)}, (normal(3, 4),), reverse=False)


def while_that_changes_a_weight(normal: Normal) -> Case:
    def forward(p, x, n):
        def body(state):
            i, y, w = state
            return i + 1, y @ w, w * 0.5

        return lax.while_loop(lambda s: s[0] < n, body, (0, x @ p["w"], p["w"]))

    return Case(
        forward, {"w": normal(4, 4)}, (normal(3, 4), jnp.array(3)), merged=("w",), reverse=False
    )


def custom_jvp(normal: Normal) -> Case:
    """The rule is wrong on purpose: only who calls it gets this gradient."""

    @jax.custom_jvp
    def layer(x, w):
        return x @ w

    @layer.defjvp
    def _(primals, tangents):
        return layer(*primals), 3 * layer(tangents[0], primals[1]) + 2 * primals[0] @ tangents[1]

    def forward(p, x):
        return jax.nn.relu(layer(x, p["w1"])) @ p["w2"]

    return Case(forward, {"w1": normal(4, 4), "w2": normal(4, 6)}, (normal(3, 4),), merged=("w1",))


def custom_vjp(normal: Normal) -> Case:
    @jax.custom_vjp
    def layer(x, w):
        return x @ w

    layer.defvjp(
        lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, 5 * saved[0].T @ g)
    )

    def forward(p, x):
        return lax.scan(lambda x, w: (layer(x, w) @ p["w2"], None), x, p["w1"])[0]

    params = {"w1": normal(3, 4, 4), "w2": normal(4, 4)}
    return Case(forward, params, (normal(3, 4),), merged=("w1",))


def inner_grad(normal: Normal) -> Case:
    def forward(p, x):
        def energy(x):
            return jnp.sum(jnp.tanh(x @ p["w1"]) @ p["w2"])

        def loss(w):
            return jnp.sum(jnp.sin(x @ w))

        return jax.grad(energy)(x), jax.hessian(energy)(x), jax.grad(loss)(p["w2"])

    params = {"w1": normal(4, 4), "w2": normal(4, 2)}
    return Case(forward, params, (normal(3, 4),))


def shard_map(normal: Normal) -> Case:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def forward(p, x):
        @functools.partial(
            jax.shard_map,
            mesh=mesh,
            in_specs=(jax.P("data"), jax.P(None, "data")),
            out_specs=jax.P("data"),
        )
        def layer(x, w):
            w = lax.all_gather(w, "data", axis=1, tiled=True)
            return x @ w + lax.pmean(x.sum(), "data")

        return layer(x, p["w1"]) @ p["w2"]

    params = {"w1": normal(4, 4), "w2": normal(4, 6)}
    return Case(forward, params, (normal(2, 4),), merged=("w1",))


def sharding_constraints(normal: Normal) -> Case:
    """Before and after the weight is transposed, cut and turned into heads."""
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))

    def laid(x, *spec):
        return lax.with_sharding_constraint(x, jax.NamedSharding(mesh, jax.P(*spec)))

    def forward(p, x):
        free = jax.P.UNCONSTRAINED
        x = lax.scan(lambda x, w: (_layer(x, laid(w, "model")), None), x, laid(p["w"], free))[0]
        heads = jnp.einsum("bd,dhk->bhk", x, laid(laid(p["w0"], "model").reshape(4, 2, 3), None))
        return heads, heads.reshape(3, 6) @ laid(p["w0"].T, "model", None)

    return Case(forward, {"w": normal(3, 4, 4), "w0": normal(4, 6)}, (normal(3, 4),))


def shard_map_of_replicated_weights(normal: Normal) -> Case:
    """Data parallelism inside of the model, whose weights arrive merged."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.P("data")

    def forward(p, x):
        layer = jax.shard_map(_layer, mesh=mesh, in_specs=(rows, jax.P()), out_specs=rows)
        return layer(x, p["w"])

    return Case(forward, {"w": normal(4, 4)}, (normal(2, 4),), merged=("w",))
