"""The suite `sweep`: sizes, learning rates, and what it reads from runs and groups."""

import numpy as np
import pytest
from fake_records import write

from configs import quickstart
from experiments.benchmarks.suites import sweep
from experiments.runs.group_folder import GroupFolder
from experiments.setup.config import parse


def test_sizes():
    first, second = sweep.parse_sizes(["8x16", "32x128"])
    assert (first.batch, first.length, str(second)) == (8, 16, "32x128")


@pytest.mark.parametrize("text", ["8", "8x", "0x16", "8x16x2", "8 x 16", "-8x16"])
def test_a_size_that_is_none_is_named(text):
    with pytest.raises(ValueError, match=f"--sizes={text}: expected BATCHxLENGTH"):
        sweep.parse_sizes([text])


@pytest.mark.parametrize("count", [2, 3, 8])
def test_learning_rates_are_spread_over_their_logarithm(count):
    found = np.array([float(text) for text in sweep.rates(count)])
    np.testing.assert_allclose(found, np.geomspace(1e-4, 1e-3, count), rtol=5e-3)
    assert len(set(found)) == count


def test_losses_are_compared_by_seed(tmp_path):
    for side, losses in (("alone", (0.5, 0.25)), ("both", (0.25, 0.75))):
        for place, loss in enumerate(losses):
            seed = place if side == "alone" else 1 - place
            how = {"losses": (loss, 9.0), "changes": {"seed": seed}}
            write(tmp_path / side / str(place), "quickstart", "", {"accuracy": 0.5}, **how)
    assert sweep.difference(tmp_path / "alone", tmp_path / "both") == 0.25


def test_how_trials_stepped_is_known_after_they_have_ended(tmp_path):
    group = GroupFolder.of([parse(quickstart.get_config().to_dict())], [tmp_path / "trials" / "0"])
    group.begin([0])
    group.settle("vmap", {"each": 0.002, "vmap": 0.001})
    (group.path / "checkpoints").mkdir()
    group.remove()
    assert not group.path.exists()
    said = "trials step by vmap (ms for a step of all: each 2.0, vmap 1.0)"
    assert sweep.how_stepped(tmp_path, "chosen") == said
    assert sweep.how_stepped(tmp_path, "map") == "trials step by map, as chosen before"
