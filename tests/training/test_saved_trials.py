"""The best states of trials, as they are saved and given back."""

import jax
import pytest

from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.outcome import Outcome
from lora_jax.training.saved_trials import OneTrial


def test_a_damaged_best_checkpoint_gives_way(tmp_path):
    states = {step: {"w": jax.numpy.full(9, step)} for step in (2, 4, 6)}

    def saved():
        return Checkpoints(tmp_path, keep=3, best=("accuracy", "max"))

    scores = {2: 0.5, 4: 0.9, 6: 0.7}
    with saved() as checkpoints:
        for step, score in scores.items():
            last = {"accuracy": score}
            checkpoints.save(step, states[step], {"outcome": {"metrics_last": last}, **last})
    outcome = Outcome(steps=8, best_step=4, metrics_best={"accuracy": 0.9})
    with saved() as checkpoints:
        (state,), (note,) = OneTrial(checkpoints, {}).best([states[2]], [outcome])
        assert (state["w"][0], note, outcome.best_step) == (4, "", 4)
    for file in (tmp_path / "4" / "state" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    with saved() as checkpoints, pytest.warns(UserWarning, match="4 is damaged"):
        (state,), (note,) = OneTrial(checkpoints, {}).best([states[2]], [outcome])
    assert note == "the best checkpoint, of step 4, is damaged: of step 6 instead"
    assert (state["w"][0], outcome.best_step, outcome.metrics_best) == (6, 6, {"accuracy": 0.7})
