"""What programs do to a weight on its way to a product: looked up, sliced, scaled, reshaped."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from zoo.case import Case, Normal


def tied_embedding(normal: Normal) -> Case:
    def forward(p, ids):
        x = p["w"][ids] * 2.0
        return jnp.tanh(x) @ p["w"].T

    return Case(forward, {"w": normal(7, 4)}, (jnp.array([[1, 6, 0], [3, 3, 2]]),))


def lookups(normal: Normal) -> Case:
    """Scalar, vector and matrix indices, from both ends, beyond the end, along the other axis."""

    def forward(p, ids):
        w = p["w"]
        clipped = jnp.take(w, ids + 5, axis=0, mode="clip")
        filled = jnp.nan_to_num(jnp.take(w, ids + 5, axis=0), nan=3.0)
        zeros = w.at[ids + 5].get(mode="fill", fill_value=0.5)
        return w[ids], w[ids[0]], w[-ids], clipped, filled, zeros, w[ids[..., None]]

    return Case(forward, {"w": normal(7, 4)}, (jnp.array([[1, 6, 0], [3, 3, 2]]),))


def lookup_by_narrow_integers(normal: Normal) -> Case:
    """A table that is longer than they can count."""

    def forward(p, *many):
        w = p["w"]
        rows = [jnp.take(w, ids, axis=0, mode=mode) for ids in many for mode in ("clip", "fill")]
        return jnp.nan_to_num(jnp.stack(rows), nan=2.0), jnp.take(w.T, many[0], axis=1)

    signed = jnp.array([1, 100, 5, 127], jnp.int8)
    ids = (signed, signed.astype(jnp.uint8) + 128, jnp.array([299, 0, 300, 7], jnp.uint16))
    return Case(forward, {"w": normal(300, 4)}, ids)


def lookup_along_the_last_axis(normal: Normal) -> Case:
    def forward(p, ids):
        return jnp.take(p["w"], ids, axis=1), jnp.moveaxis(p["w"], 1, 0)[ids]

    return Case(forward, {"w": normal(4, 7)}, (jnp.array([[1, 6, 0], [3, 3, 2]]),))


def lookup_of_matrices(normal: Normal) -> Case:
    def forward(p, ids):
        return p["w"][ids], jnp.take(p["w"], ids, axis=1)

    return Case(forward, {"w": normal(5, 4, 3)}, (jnp.array([1, 3]),), merged=("w",))


def twice(normal: Normal) -> Case:
    def forward(p, x):
        return jnp.tanh(x @ p["w"]) @ p["w"] + x @ p["w"].T

    return Case(forward, {"w": normal(4, 4)}, (normal(3, 4),))


def product_of_weights(normal: Normal) -> Case:
    def forward(p, x):
        return x @ (p["w1"] @ p["w2"]), (x @ p["w1"]) @ p["w2"]

    params = {"w1": normal(4, 3), "w2": normal(3, 6)}
    return Case(forward, params, (normal(3, 4),), merged=("w1",))


def named(normal: Normal) -> Case:
    """Layers whose weights a policy may save."""

    def forward(p, x):
        layer = jax.checkpoint(
            lambda x, w: jnp.tanh(x @ checkpoint_name(w, "w")),
            policy=jax.checkpoint_policies.save_only_these_names("w"),
        )
        return lax.scan(lambda x, w: (layer(x, w), None), x, checkpoint_name(p["w"], "all"))[0]

    return Case(forward, {"w": normal(3, 4, 4)}, (normal(3, 4),))


def behind_a_barrier(normal: Normal) -> Case:
    """As in models that keep the compiler from fetching the next layer's weights too early."""

    def forward(p, x):
        for i in range(3):
            x, layer, _ = lax.optimization_barrier((x, p["w"][i], p["w0"]))
            x = jnp.tanh(x @ layer)
        return x @ lax.optimization_barrier(p["w0"]).T

    return Case(forward, {"w": normal(3, 4, 4), "w0": normal(6, 4)}, (normal(3, 4),))


def slices_of_outputs(normal: Normal) -> Case:
    def forward(p, x):
        k, v = jnp.split(p["w"][:, 6:], 2, axis=1)
        return x @ p["w"][:, :6], x @ k, x @ v, x @ p["w"][:, 1:2], x @ p["w"]

    return Case(forward, {"w": normal(4, 18)}, (normal(3, 4),))


def slices_of_inputs(normal: Normal) -> Case:
    def forward(p, x):
        return x @ p["w"][:4] + x @ p["w"][4:] + x[:, :1] @ p["w"][3:4]

    return Case(forward, {"w": normal(8, 5)}, (normal(3, 4),))


def scaled(normal: Normal) -> Case:
    def forward(p, x):
        return x @ (p["w"] * 0.5) + x @ (p["w"] / x[0, 0])

    return Case(forward, {"w": normal(4, 6)}, (normal(3, 4),), merged=("w",))


def returned(normal: Normal) -> Case:
    def forward(p, x):
        return {"y": x @ p["w"], "w": p["w"], "wt": p["w"].T.reshape(2, 12), "none": None}

    return Case(forward, {"w": normal(4, 6)}, (normal(3, 4),), merged=("w",))


def stopped_gradient(normal: Normal) -> Case:
    def forward(p, x):
        return x @ lax.stop_gradient(p["w"]), jnp.tanh(x @ p["w"])

    return Case(forward, {"w": normal(4, 6)}, (normal(3, 4),), merged=("w",))


def linear_algebra(normal: Normal) -> Case:
    def forward(p, x):
        w = p["w"]
        spectrum = jnp.abs(jnp.fft.fft2(w))
        return (
            x @ w,
            jnp.linalg.solve(w, x.T),
            jnp.linalg.norm(w, axis=0),
            spectrum,
            jnp.linalg.inv(w),
        )

    return Case(forward, {"w": normal(4, 4) + 3 * jnp.eye(4)}, (normal(3, 4),), merged=("w",))


def reshaped(normal: Normal) -> Case:
    def forward(p, x):
        heads = jnp.einsum("bd,dhk->bhk", x, p["w"].reshape(4, 2, 3))
        return heads, x.reshape(3, 2, 2).reshape(3, 4) @ p["w"], x @ p["w"][None][0]

    return Case(forward, {"w": normal(4, 6)}, (normal(3, 4),))


def reshaped_across(normal: Normal) -> Case:
    def forward(p, x):
        return x @ p["w"], x.reshape(-1, 6) @ p["w"].reshape(6, 4)

    return Case(forward, {"w": normal(4, 6)}, (normal(3, 4),), merged=("w",))


def stored_flat(normal: Normal) -> Case:
    def forward(p, x):
        return x @ p["w"].reshape(4, 6)

    return Case(forward, {"w": normal(24), "v": normal(1)}, (normal(3, 4),), rank=1, merged=("w",))


def swapped_and_split(normal: Normal) -> Case:
    """Output axes `(h, k)` used as `(k, h)`, input axis split, everything transposed."""

    def forward(p, x):
        w = p["w"].reshape(2, 2, 3, 2).transpose(3, 2, 1, 0)
        return jnp.einsum("khji,bij->bkh", w, x.reshape(-1, 2, 2))

    return Case(forward, {"w": normal(4, 6)}, (normal(3, 4),))


def convolution(normal: Normal) -> Case:
    def forward(p, x):
        return lax.conv_general_dilated(
            x, p["w"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    return Case(forward, {"w": normal(3, 4, 6)}, (normal(2, 5, 4),))


def ragged(normal: Normal) -> Case:
    def forward(p, x, sizes):
        return lax.ragged_dot(x, p["w"], sizes)

    return Case(
        forward, {"w": normal(3, 4, 6)}, (normal(5, 4), jnp.array([2, 0, 3])), merged=("w",)
    )


def highest_precision(normal: Normal) -> Case:
    def forward(p, x):
        y = jnp.dot(x, p["w"], precision=lax.Precision.HIGHEST)
        return jnp.dot(y, p["w"].T, precision=("high", "highest")), jnp.dot(
            x, p["w"], precision="float32"
        )

    return Case(forward, {"w": normal(4, 6)}, (normal(3, 4),), merged=("w",))


def algorithms(normal: Normal) -> Case:
    def forward(p, x):
        y = jnp.dot(x, p["w"], precision=lax.DotAlgorithmPreset.DEFAULT)
        return jnp.dot(y, p["w"].T, precision=lax.DotAlgorithmPreset.F64_F64_F64)

    return Case(forward, {"w": normal(4, 6)}, (normal(3, 4),))


def wide_accumulation(normal: Normal) -> Case:
    def forward(p, x):
        return jnp.dot(x, p["w"], preferred_element_type=jnp.float64)

    return Case(forward, {"w": normal(4, 6)}, (normal(3, 4),))
