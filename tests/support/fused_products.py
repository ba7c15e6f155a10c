"""Products that are reduced at once, beside what NumPy makes of them, as a program of its own.

    python tests/support/fused_products.py [first]

`first` imports lora_jax before anything is computed, as the library's users do. Prints the largest
relative error of each pattern and of its gradients, as JSON.
"""

import json
import sys

if "first" in sys.argv[1:]:
    import lora_jax  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np


def broadcast_operand(dtype: str) -> dict[str, float]:
    """sum((E @ full(c)) * E, -1): each row of E @ full(c) holds c times the sum of E's row."""
    e = np.random.default_rng(0).normal(size=(5, 60, 60)).astype(dtype)

    def value(e):
        return jnp.sum((e @ jnp.full_like(e, 0.5)) * e, -1)

    exact = e.astype(np.float64)
    sums = exact.sum(-1)
    slope = np.broadcast_to(sums[..., None], e.shape)  # of sum(0.5 * sums ** 2)
    return {
        "value": error(jax.jit(value)(e), 0.5 * sums**2),
        "gradient": error(jax.jit(jax.grad(lambda e: value(e).sum()))(e), slope),
    }


def many_rows(dtype: str, rows: int) -> dict[str, float]:
    """sum((M @ row) ** 2) of each of many rows, and its gradient 2 M^T M row."""
    x = np.stack([np.arange(rows), np.ones(rows), np.zeros(rows)], axis=1).astype(dtype)
    matrix = np.eye(3, dtype=dtype)

    def value(row):
        return jnp.sum((matrix @ row) ** 2)

    exact = x.astype(np.float64)
    return {
        "value": error(jax.jit(jax.vmap(value))(x), (exact**2).sum(-1)),
        "gradient": error(jax.jit(jax.vmap(jax.grad(value)))(x), 2 * exact),
    }


def error(found, exact: np.ndarray) -> float:
    """The largest difference over the largest exact value; infinite for what is not finite."""
    difference = np.abs(np.asarray(found, np.float64) - exact).max() / np.abs(exact).max()
    return float(difference) if np.isfinite(difference) else float("inf")


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    found = {}
    for dtype, rows in (("float64", 16_385), ("float32", 32_769)):
        found[f"broadcast operand, {dtype}"] = broadcast_operand(dtype)
        found[f"many rows, {dtype}"] = many_rows(dtype, rows)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
