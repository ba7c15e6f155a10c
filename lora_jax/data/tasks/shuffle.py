"""The permutation that every shuffle and split in this package uses."""

import numpy as np


def permutation(count: int, *entropy: int) -> np.ndarray:
    """A permutation of `range(count)`, int64, that depends on `entropy` alone (integers >= 0).

    It sorts a bit generator's raw output. NumPy promises that these streams never change, but does
    not promise it for `Generator.permutation` (NEP 19). A plan must stay the same across NumPy
    releases.
    """
    # SeedSequence pads with zeros: without the length, (1,) and (1, 0) would be the same seed.
    bits = np.random.PCG64(np.random.SeedSequence([len(entropy), *entropy]))
    return np.argsort(bits.random_raw(count), kind="stable").astype(np.int64)
