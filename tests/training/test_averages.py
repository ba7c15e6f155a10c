"""Moving averages against the closed form of gradient descent on a quadratic."""

import jax.numpy as jnp
import numpy as np

from lora_jax.training.step import Average


def test_the_average_of_descent_on_a_quadratic_has_a_closed_form():
    """w_k = c + (1 - h)^k (w_0 - c), so that the average is a ratio of two geometric sums."""
    decay, h, steps = 0.75, 0.25, 6
    start, centre = np.array([3.0, -1.0], np.float32), np.array([1.0, 2.0], np.float32)
    now = {"adapters": {}, "params": {"w": jnp.asarray(start)}}
    average = Average.zero(now)
    np.testing.assert_array_equal(average.value(now)["params"]["w"], start)
    for step in range(steps):
        w = now["params"]["w"]
        now = {"adapters": {}, "params": {"w": w - h * (w - centre)}}
        average = average.add(now, decay)
        if not step:
            np.testing.assert_allclose(average.value(now)["params"]["w"], now["params"]["w"])
    q, total = 1 - h, (1 - decay**steps) / (1 - decay)
    weighted = steps * q**steps if q == decay else None
    expected = centre + (start - centre) * weighted / total
    np.testing.assert_allclose(average.value(now)["params"]["w"], expected, rtol=1e-5)


def test_an_average_of_bfloat16_is_summed_in_float32():
    """In bfloat16, 1 - 0.999 of a number would be lost in sums of two hundred steps."""
    now = {"params": {"w": jnp.full(3, 1.5, jnp.bfloat16)}}
    average = Average.zero(now)
    for _ in range(200):
        average = average.add(now, 0.999)
    assert average.sums["params"]["w"].dtype == jnp.float32
    found = average.value(now)["params"]["w"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found, np.float32), 1.5)
