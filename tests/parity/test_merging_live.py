"""TIES of dense updates next to PEFT's function, which it applies to A and to B apart."""

import numpy as np
import pytest

from lora_jax.adapters.merging import Method

merge_utils = pytest.importorskip("peft.utils.merge_utils")
torch = pytest.importorskip("torch")


@pytest.mark.parity
@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
def test_ties_is_that_of_peft(density):
    """Where weights differ, PEFT elects signs before it multiplies by them, and this after."""
    rng = np.random.default_rng(7)
    updates = [rng.standard_normal((9, 14)) for _ in range(4)]
    theirs = merge_utils.ties(
        [torch.from_numpy(each) for each in updates],
        torch.full((4,), 0.6, dtype=torch.float64),
        density,
    )
    found = Method("ties", (0.6,) * 4, density)(updates)
    np.testing.assert_allclose(found, theirs.numpy(), atol=1e-14)
