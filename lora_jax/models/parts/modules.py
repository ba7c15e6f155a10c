"""The building blocks of all models: linear layers, norms, tables, activations, and stacking."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from lora_jax.base import wide

Pool = Literal["cls", "mean"]
LayerT = TypeVar("LayerT")


def like(vector: Array, x: Array) -> Array:
    """A vector over the last axis of x, with x's rank and dtype."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Set a share `rate` of x to zero and scale the rest up; without a key, return x itself.

    Random bits take a tenth of a training step on CPUs. So two entries share a random word, where
    `jax.random.bernoulli` takes one for each; the rate is rounded to a multiple of 2**-16.
    """
    if key is None or rate == 0.0:
        return x
    kept = max(1, round((1.0 - rate) * 2**16))
    words = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*x.shape[:-1], -1)
    keep = halves[..., : x.shape[-1]].astype(jnp.int32) < kept
    return jnp.where(keep, x * (2**16 / kept), jnp.zeros_like(x))


def split_keys(key: Array | None, count: int) -> tuple[Array | None, ...]:
    """Split a key into `count` keys; without a key, return `count` times None."""
    return (None,) * count if key is None else tuple(jax.random.split(key, count))


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """x Phi(x), Phi being the normal distribution function: any shape, elementwise.

    Hendrycks and Gimpel, 2016 (arXiv:1606.08415). `jax.nn.gelu` computes Phi by `erfc`, which takes
    an exponential and several branches, and keeps intermediate values for the backward pass. This
    one keeps x alone; far below zero, its error is small beside one instead of beside the result,
    as torch's is. It computes in float32 at least.
    """
    wider = x.astype(wide(x.dtype))
    return (wider * _normal_cdf(wider)).astype(x.dtype)


@gelu.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    # Behind the barrier, XLA computes the distribution again, and does not keep it for this.
    again = jax.lax.optimization_barrier(x).astype(wide(x.dtype))
    density = jnp.exp(-jnp.square(again) / 2) / math.sqrt(2 * math.pi)
    return gelu(x), (_normal_cdf(again) + again * density).astype(x.dtype) * tangent


def _normal_cdf(x: Array) -> Array:
    return (1 + jax.lax.erf(x * math.sqrt(0.5))) / 2


_tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)

# By transformers' names. "gelu" is exact (erf); the other gelus are its tanh approximation.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


class Linear(nnx.Module):
    """x @ kernel + bias, (..., in) to (..., out), in the dtype of x."""

    def __init__(
        self,
        width: int,
        out: int,
        std: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        use_bias: bool = True,
    ):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (width, out), dtype))
        if use_bias:
            self.bias = nnx.Param(jnp.zeros(out, dtype))
        self.use_bias = use_bias

    def __call__(self, x: Array) -> Array:
        y = x @ self.kernel[...].astype(x.dtype)
        return y + like(self.bias[...], y) if self.use_bias else y


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def standardize(x: Array, epsilon: float) -> Array:
    """The last axis with a mean of zero and a variance of one: (..., width) to (..., width)."""
    return _standardized(x, epsilon)[0]


@standardize.defjvp
def _(epsilon: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y, scale = _standardized(*primals, epsilon)
    (tangent,) = tangents
    along = y * (tangent * y).mean(-1, keepdims=True)
    return y, scale * (tangent - tangent.mean(-1, keepdims=True) - along)


def _standardized(x: Array, epsilon: float) -> tuple[Array, Array]:
    """The result of `standardize`, and the reciprocal of the standard deviation (..., 1)."""
    centred = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    return centred * scale, scale


class LayerNorm(nnx.Module):
    """Normalise the last axis, in float32 at least; the result has the dtype of x."""

    def __init__(self, width: int, epsilon: float, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones(width, dtype))
        self.bias = nnx.Param(jnp.zeros(width, dtype))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        y = standardize(x.astype(wide(x.dtype)), self.epsilon)
        return (y * like(self.scale[...], y) + like(self.bias[...], y)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Scale the last axis to a mean square of one, in float32 at least; x's dtype is kept.

    Zhang and Sennrich, 2019 (arXiv:1910.07467).
    """

    def __init__(self, width: int, epsilon: float, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones(width, dtype))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        y = x.astype(wide(x.dtype))
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * like(self.scale[...], y)).astype(x.dtype)


class Embedding(nnx.Module):
    """Rows of a table, by integer ids."""

    def __init__(self, rows: int, width: int, std: float, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embedding = nnx.Param(std * jax.random.normal(rngs.params(), (rows, width), dtype))

    def __call__(self, ids: Array, dtype: DTypeLike) -> Array:
        return jnp.take(self.embedding[...], ids, axis=0).astype(dtype)


def stack_layers(make: Callable[[nnx.Rngs], LayerT], copies: int, rngs: nnx.Rngs) -> LayerT:
    """Stack layers: every parameter gets a leading axis, and every layer its own random key."""

    @nnx.split_rngs(splits=copies)
    @nnx.vmap
    def layers(rngs: nnx.Rngs) -> LayerT:
        return make(rngs)

    return layers(rngs)


UNROLLED = {"cpu": 48}
"""Up to how many layers are unrolled by default, by backend; more of them, or others, are scanned.

On CPUs, a scan fills and copies the values that the backward pass needs: at 24 to 48 layers, steps
are 7 to 11% shorter unrolled, and compile two to four times as long. Elsewhere they take more
memory. Models that recompute layers to save memory scan them.
"""


def layers_at_once(count: int, unroll: int | None, remat: bool | str = False) -> int:
    """How many of `count` layers an iteration of `over_layers` applies."""
    if unroll is not None:
        return min(unroll, count)
    most = 1 if remat else UNROLLED.get(jax.default_backend(), 1)
    return count if count <= most else 1


def over_layers(
    layer: Callable[[Any, Any], tuple[Any, Any]],
    x: Any,
    stacked: Any,
    count: int,
    unroll: int | None,
    remat: bool | str = False,
) -> tuple[Any, Any]:
    """Apply `count` layers one after another: x through `layer`, with each entry of `stacked`.

    Args:
      unroll: how many layers an iteration of the loop applies; by default all that `UNROLLED`
        allows, or one.
      remat: whether the backward pass computes each layer again; or the name of a policy of
        `jax.checkpoint_policies`, which keeps some values.

    Returns:
      The last x, and what each layer returned beside it, stacked.
    """
    at_once = layers_at_once(count, unroll, remat)
    if remat:
        policy = getattr(jax.checkpoint_policies, remat) if isinstance(remat, str) else None
        # In a loop, XLA cannot undo this by sharing computations with the forward pass.
        layer = jax.checkpoint(layer, prevent_cse=at_once > 1, policy=policy)
    return jax.lax.scan(layer, x, stacked, unroll=at_once)


def attention_bias(mask: Array, dtype: DTypeLike) -> Array:
    """A term (B, 1, 1, T) to add to attention scores: 0 for tokens, -1e30 for masked keys.

    It is finite, so that the softmax of a fully masked row is finite too.
    """
    here, masked = jnp.array(0, dtype), jnp.array(-1e30, dtype)
    return jnp.where(mask.astype(bool), here, masked)[:, None, None, :]


def masked_mean(x: Array, mask: Array) -> Array:
    """Mean over unmasked tokens, 0 if none: (B, T, hidden) to (B, hidden), float32 at least."""
    x = x.astype(wide(x.dtype))
    weights = mask.astype(bool).astype(x.dtype)[:, :, None]
    return (x * weights).sum(1) / jnp.maximum(weights.sum(1), 1)
