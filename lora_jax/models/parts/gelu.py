"""The exact Gaussian error linear unit, with a derivative that costs one pass over its input."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.base import wide


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
