"""The best states of trials, as they are kept, saved and given back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_training import fit

from lora_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_the_best_state_outlives_its_checkpoint(tmp_path):
    """It is in all later ones: where the newest is damaged, the one before it has it, too."""
    scores = iter((0.2, 0.9, 0.1, 0.4, 0.6))
    state, outcome = fit(tmp_path, evaluate_every=4, scores=lambda _: next(scores), chosen="best")
    assert (outcome.best_step, int(state.step), outcome.steps) == (8, 8, 20)
    with Checkpoints(tmp_path / "checkpoints") as saved:
        assert saved.steps() == [16, 20]
    for file in (tmp_path / "checkpoints" / "20" / "state" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    again = iter((0.6,))
    with pytest.warns(UserWarning, match="20 is damaged"):
        found, outcome = fit(
            tmp_path, evaluate_every=4, scores=lambda _: next(again), chosen="best"
        )
    assert outcome.best_step == 8
    for got, wanted in zip(
        jax.tree.leaves(found.trainable), jax.tree.leaves(state.trainable), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)
    assert not jax.tree.leaves(found.opt_state) and jnp.issubdtype(found.step.dtype, jnp.integer)
