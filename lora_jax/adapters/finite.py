"""A NaN in an adapter spoils every loss, and no step can mend it."""

from typing import Any

import jax
import numpy as np

from lora_jax.files.arrays import is_key, to_host
from lora_jax.partition import flatten


def require_finite(tree: Any, where: str) -> None:
    """Raise a ValueError that names the first array with a NaN or an infinity; keys do not count.

    Args:
      where: the adapter, for the message.
    """
    for path, leaf in flatten(tree)[0].items():
        if is_key(leaf) or not isinstance(leaf, jax.Array | np.ndarray):
            continue
        array = to_host(leaf)
        # NumPy has no isfinite for bfloat16 and other small types, but float32 holds all of them.
        if array.dtype.itemsize < 4 and array.dtype.kind not in "biu":
            array = array.astype(np.float32)
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            raise ValueError(f"{where}: '{path}' holds NaN or an infinity")
