"""An adapter with a number that is not finite is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters.adapter_file import require_finite


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_array_is_named(dtype):
    tree = {"a": jnp.ones(2, dtype), "b": {"c": jnp.ones(2, dtype)}, "key": jax.random.key(0)}
    require_finite({**tree, "n": np.int8(3), "whole": np.array([2**31 - 1])}, "start")
    for number in (jnp.nan, jnp.inf, -jnp.inf):
        tree["b"]["c"] = jnp.array([1, number], dtype)
        with pytest.raises(ValueError, match=r"^start: 'b/c' holds NaN or an infinity$"):
            require_finite(tree, "start")
