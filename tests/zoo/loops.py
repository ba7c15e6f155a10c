"""Stacked layers: scanned, indexed, sliced, mapped over; weights that loops share or carry."""

import jax
import jax.numpy as jnp
from jax import lax

from zoo.case import Case, Normal


def _layer(x, w):
    return jnp.tanh(x @ w)


def _stack(normal: Normal, *lead: int) -> dict:
    return {"w": normal(*lead, 4, 4)}


def _over_layers(normal: Normal, forward, count: int = 4, **kwargs) -> Case:
    return Case(forward, _stack(normal, count), (normal(3, 4),), **kwargs)


def scan(normal: Normal) -> Case:
    return _over_layers(normal, lambda p, x: lax.scan(lambda x, w: (_layer(x, w), x), x, p["w"]))


def scan_of_one(normal: Normal) -> Case:
    def forward(p, x):
        return lax.scan(lambda x, w: (_layer(x, w), None), x, p["w"])

    return _over_layers(normal, forward, count=1)


def scan_nested_the_other_way(normal: Normal) -> Case:
    """Layer `i + 2 j` comes at `(i, j)`, and the inner loop runs backwards."""

    def forward(p, x):
        def block(x, ws):
            return lax.scan(lambda x, w: (_layer(x, w), None), x, ws, reverse=True)

        return lax.scan(block, x, p["w"].reshape(3, 2, 4, 4).swapaxes(0, 1))[0]

    return _over_layers(normal, forward, count=6)


def scan_of_swapped_layers_as_one_axis(normal: Normal) -> Case:
    def forward(p, x):
        ws = p["w"].reshape(3, 2, 2, 4, 4).swapaxes(1, 2).reshape(6, 2, 4, 4)[:5]
        ws = ws.transpose(1, 0, 2, 3).reshape(10, 4, 4)
        return lax.scan(lambda x, w: (_layer(x, w), None), x, ws)[0]

    return _over_layers(normal, forward, count=12)


def scan_along_the_last_axis(normal: Normal) -> Case:
    def forward(p, x):
        ws = jnp.moveaxis(p["w"], -1, 0)
        return lax.scan(lambda x, w: (_layer(x, w), None), x, ws)[0]

    return Case(forward, {"w": normal(4, 4, 3)}, (normal(3, 4),))


def scan_with_a_shared_weight(normal: Normal) -> Case:
    def forward(p, x):
        return lax.scan(lambda x, w: (_layer(x, w) @ p["w0"], None), x, p["w"])[0] @ p["w0"].T

    return Case(forward, {"w": normal(3, 4, 4), "w0": normal(4, 4)}, (normal(3, 4),))


def scan_that_carries_a_weight(normal: Normal) -> Case:
    def forward(p, x, rows):
        def step(carry, row):
            y, w = carry
            return (_layer(y, w) + row, w), y

        (y, w), ys = lax.scan(step, (x, p["w"]), rows)
        return y @ w, ys

    return Case(forward, {"w": normal(4, 4)}, (normal(3, 4), normal(5, 3, 4)))


def scan_that_swaps_weights(normal: Normal) -> Case:
    def forward(p, x):
        def step(carry, _):
            y, w1, w2 = carry
            return (y @ w1, w2, w1), w1

        (y, w1, _), ys = lax.scan(step, (x, p["w1"], p["w2"]), length=3)
        return y @ w1 + x @ p["w1"] @ p["w2"], ys

    params = {"w1": normal(4, 4), "w2": normal(4, 4)}
    return Case(forward, params, (normal(3, 4),), merged=("w1", "w2"))


def scan_that_returns_its_rows(normal: Normal) -> Case:
    def forward(p, x):
        return lax.scan(lambda x, w: (_layer(x, w), w), x, p["w"])

    return _over_layers(normal, forward, merged=("w",))


def scan_over_inputs(normal: Normal) -> Case:
    """Scanned along an in axis somewhere, multiplied by whole elsewhere."""

    def forward(p, x):
        return lax.scan(lambda y, w: (y + w.sum(), w * 2), 0.0, p["w"]), x @ p["w"]

    return Case(forward, {"w": normal(4, 6)}, (normal(3, 4),), merged=("w",))


def python_loop(normal: Normal) -> Case:
    def forward(p, x):
        for i in range(4):
            x = _layer(x, p["w"][i])
        return x @ p["w"][-1] @ p["w"][-4].T

    return _over_layers(normal, forward)


def traced_index(normal: Normal) -> Case:
    def forward(p, x, i):
        w = p["w"]
        x = _layer(_layer(x, w[i]), w[-i])
        x = _layer(x, jnp.take(w, i, axis=0))
        x = _layer(x, lax.dynamic_index_in_dim(w, i, keepdims=False))
        return _layer(x, w.at[i + 9].get(mode="clip"))

    return Case(forward, _stack(normal, 4), (normal(3, 4), jnp.array(2)))


def traced_index_out_of_range(normal: Normal) -> Case:
    def forward(p, x, i):
        return jnp.nan_to_num(_layer(x, jnp.take(p["w"], i, axis=0)), nan=2.0), x @ p["w"][0]

    return Case(forward, _stack(normal, 4), (normal(3, 4), jnp.array(7)))


def dynamic_slices_from_out_of_range(normal: Normal) -> Case:
    """Starts that JAX counts from the end once, and then moves into range; or does not count."""

    def forward(p, x, starts):
        for start in starts:
            for counts in (True, False):
                one = lax.dynamic_slice(
                    p["w"], (start, 0, 0), (1, 4, 4), allow_negative_indices=counts
                )
                two = lax.dynamic_slice_in_dim(p["w"], start, 2, allow_negative_indices=counts)
                x = lax.scan(lambda x, w: (_layer(x, w), None), _layer(x, one[0]), two)[0]
            x = _layer(x, lax.dynamic_index_in_dim(p["w"], start, keepdims=False))
        return x

    starts = [jnp.array(start) for start in (-9, -7, -5, -1, 3, 7)]
    return Case(forward, _stack(normal, 4), (normal(3, 4), starts))


def index_of_two_stacked_axes(normal: Normal) -> Case:
    def forward(p, x, i):
        return x @ p["w"][1, 2] + x @ p["w"][i, -1] + x @ p["w"][:, 0][i]

    return Case(forward, _stack(normal, 2, 3), (normal(3, 4), jnp.array(1)))


def narrow_indices_of_many_layers(normal: Normal) -> Case:
    """An index of eight bits cannot count them; JAX's own reverse mode loses the row then."""

    def forward(p, x, indices):
        for i in indices:
            x = _layer(x, jnp.take(p["w"], i, axis=0))
        return x

    indices = [jnp.array(100, jnp.int8), jnp.array(5, jnp.int8), jnp.array(250, jnp.uint8)]
    return Case(forward, {"w": normal(300, 4, 4)}, (normal(3, 4), indices), reverse=False)


def slices_of_layers(normal: Normal) -> Case:
    def forward(p, x, i):
        for part in (p["w"][1:3], p["w"][::2], p["w"][4:], lax.dynamic_slice_in_dim(p["w"], i, 2)):
            x, _ = lax.scan(lambda x, w: (_layer(x, w), None), x, part)
        first, last = jnp.split(p["w"], (3,))
        return _layer(x, first[2]) + x @ last[0] + x @ p["w"][::-2][0]

    return Case(forward, _stack(normal, 5), (normal(3, 4), jnp.array(2)), merged=("w",))


def vmap_over_stacks(normal: Normal) -> Case:
    def forward(p, x):
        y = jax.vmap(_layer, in_axes=(0, 0), out_axes=1)(jnp.stack([x] * 4), p["w"])
        return jax.vmap(lambda x, w: w.T @ x, in_axes=(1, 0))(y.swapaxes(0, 2), p["w"])

    return _over_layers(normal, forward)


def vmap_over_weights_alone(normal: Normal) -> Case:
    """JAX makes one matrix of the stack, `4 -> (4 layers x 4)`."""
    return _over_layers(normal, lambda p, x: jax.vmap(_layer, in_axes=(None, 0))(x, p["w"]))


def vmap_nested(normal: Normal) -> Case:
    def forward(p, x):
        inner = jax.vmap(_layer, in_axes=(0, 2))
        return jax.vmap(inner, in_axes=(None, 0), out_axes=2)(x, p["w"])

    return Case(forward, {"w": normal(2, 4, 4, 3)}, (normal(3, 5, 4),))


def vmap_of_one(normal: Normal) -> Case:
    def forward(p, x):
        return jax.vmap(_layer)(x[None], p["w"])

    return _over_layers(normal, forward, count=1)


def vmapped_tables(normal: Normal) -> Case:
    def forward(p, ids):
        return jax.vmap(lambda w, i: w[i])(p["w"], ids), jax.vmap(lambda w: w[ids[0]])(p["w"])

    return Case(forward, {"w": normal(2, 7, 4)}, (jnp.array([[1, 2], [6, 0]]),), merged=("w",))


def parts_in_the_middle(normal: Normal) -> Case:
    def forward(p, x):
        q, k, v = lax.unstack(p["w"], axis=1)
        return (x @ q) * (x @ k) + x @ v

    return Case(forward, {"w": normal(4, 3, 5)}, (normal(3, 4),))


def parts_of_parts(normal: Normal) -> Case:
    """A part that is taken apart again, and one that is not used."""

    def forward(p, x):
        first, _ = lax.unstack(p["w"])
        a, b = lax.unstack(first)
        return x @ a, jnp.tanh(x @ a) @ b.T

    return Case(forward, {"w": normal(2, 2, 4, 5)}, (normal(3, 4),))


def scan_over_parts_of_a_matrix(normal: Normal) -> Case:
    """Each iteration has some of the outputs: no rule, and `discover` says so."""

    def forward(p, x):
        parts = p["w"].reshape(4, 3, 2).transpose(1, 0, 2)
        return lax.scan(lambda y, w: (y + jnp.tanh(x @ w), x @ w), jnp.zeros((3, 2)), parts)

    return Case(forward, {"w": normal(4, 6)}, (normal(3, 4),), merged=("w",))


def part_of_one(normal: Normal) -> Case:
    return _over_layers(normal, lambda p, x: x @ lax.unstack(p["w"])[0], count=1)


def vmapped_parts(normal: Normal) -> Case:
    def forward(p, x):
        def layers(w, x):
            for part in lax.unstack(w):
                x = _layer(x, part.T)
            return x

        return jax.vmap(layers)(p["w"], jnp.stack([x, -x]))

    return Case(forward, _stack(normal, 2, 3), (normal(3, 4),))


def parts_of_several_layers_and_none(normal: Normal) -> Case:
    def forward(p, x):
        for part in lax.split(p["w"], (1, 0, 2)):
            x = lax.scan(lambda x, w: (_layer(x, w), None), x, part)[0]
        return x

    return _over_layers(normal, forward, count=3)


def part_that_is_all(normal: Normal) -> Case:
    def forward(p, x):
        return x @ lax.split(p["w"], (6,), axis=1)[0]

    return Case(forward, {"w": normal(4, 6)}, (normal(3, 4),))


def parts_of_a_matrix(normal: Normal) -> Case:
    """Parts of a matrix are cut from its factors."""

    def forward(p, x):
        q, k = lax.split(p["w"], (4, 2), axis=1)
        return (x @ q)[:, :2] * (x @ k)

    return Case(forward, {"w": normal(4, 6)}, (normal(3, 4),))
