"""Whole runs with other optimisers and with an average: killed, continued, saved and scored."""

import numpy as np
import pytest
import safetensors.numpy
import small_model
from killed import Killed

from experiments.runs import predictions, run
from experiments.setup.experiment import Experiment
from lora_jax.records import run_record

pytestmark = pytest.mark.usefixtures("standard_promotion")

FREE = {"train__optimizer": "schedule_free", "optimizer__schedule": "constant"}
CHANGES = [
    FREE,
    {"train__ema": 0.5, "train__optimizer": "sgd", "optimizer__momentum": 0.5},
    {"train__optimizer": "lion", "optimizer__head_learning_rate": 1e-3},
    {"train__optimizer": "adafactor"},
    {"train__optimizer": "muon", "variant__name": "full"},
]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return small_model.smoke_runs(tmp_path_factory.mktemp("small"))


@pytest.mark.slow
@pytest.mark.parametrize("changes", CHANGES)
def test_a_killed_run_ends_with_the_same_bits(smoke, tmp_path, monkeypatch, changes):
    """And the saved adapter is what was scored: the average, where there is one."""
    arg = "variant=full" if changes.pop("variant__name", "") else ""
    config = smoke(arg, train__checkpoint_every=2, train__max_steps=6, **changes)
    straight = run.run(config, tmp_path / "straight", audit=changes != FREE)
    true_batches = Experiment.batches

    def killed(self, step):
        for number, batch in enumerate(true_batches(self, step), step):
            if number == 5:
                raise Killed
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(Experiment, "batches", killed)
        with pytest.raises(Killed):
            run.run(config, tmp_path / "killed", audit=False)
    run.run(config, tmp_path / "killed", audit=False)
    ours, theirs = (
        safetensors.numpy.load_file(tmp_path / name / "adapter.safetensors")
        for name in ("killed", "straight")
    )
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)
    said = predictions.read(tmp_path / "straight")["validation"]
    assert np.mean(said.outputs.argmax(1) == said.labels) == straight.metrics_last["accuracy"]
    assert run_record.read(tmp_path / "killed").metrics_last == straight.metrics_last
