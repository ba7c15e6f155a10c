"""The one source of order in this package."""

import numpy as np


def permutation(count: int, *entropy: int) -> np.ndarray:
    """A permutation of `range(count)`, int64, that depends on `entropy` alone (integers >= 0).

    It sorts a bit generator's raw output: NumPy promises that those streams never change, but not
    what `Generator.permutation` makes of them (NEP 19), and a plan has to outlive a NumPy release.
    """
    # SeedSequence pads with zeros, so (1,) and (1, 0) would be one seed without their length.
    bits = np.random.PCG64(np.random.SeedSequence([len(entropy), *entropy]))
    return np.argsort(bits.random_raw(count), kind="stable").astype(np.int64)
