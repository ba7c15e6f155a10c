"""The networks of arXiv 2310.17513 against numbers that the authors' program gives in PyTorch."""

import csv
import dataclasses
import functools
import statistics

import commands
import numpy as np
import pytest

from experiments.approximation import medians
from experiments.approximation.construction import construct, error_on_test
from experiments.approximation.networks import Layer, Pair, Setting, draw
from experiments.approximation.torch_random import TorchRandom
from experiments.approximation.training import Grid, train


def test_numbers_are_those_of_pytorch():
    random = TorchRandom(7)  # as torch.manual_seed(7)
    uniform = random.uniform((3,), 0.25)
    np.testing.assert_allclose(uniform, [0.017461270, -0.15059841, 0.079605848], rtol=1e-6)
    single = random.normal((3,))  # fewer than 16 are drawn one by one, and one is left over
    np.testing.assert_allclose(single, [-0.032551974, 1.0110544, 1.7714938], rtol=1e-6)
    grouped = random.normal((18,))[::5]  # a group of 16, and the last 16 again
    np.testing.assert_allclose(
        grouped, [0.98611182, -0.083528228, 0.48235416, 1.6409333], rtol=1e-6
    )


# The authors' program at commit fc07be3, 50 steps of 256 inputs, scored on 5,000.
TRAINED = [
    (Setting(), 0, False, (8, 1e-2, 1e-2), 0.08355294913053513),
    (Setting(), 1, True, (3, 1e-3, 0.0), 0.1603964865207672),
    (Setting(target_depth=2, frozen_depth=4), 2, True, (3, 1e-2, 1e-3), 0.01744607277214527),
    (
        Setting(width=8, activation="linear", biases=False),
        *(3, True, (2, 1e-2, 0.0), 0.17385688424110413),
    ),
    (Setting(pretrained=True), 0, True, (8, 1e-2, 1e-2), 0.03861445561051369),
]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(("setting", "seed", "biases", "cell", "loss"), TRAINED)
def test_training_ends_where_the_authors_program_does(setting, seed, biases, cell, loss):
    rank, rate, decay = cell
    # A larger rank beside it: its factors must not reach the smaller one.
    grid = Grid(ranks=(rank, setting.width), rates=(rate,), decays=(decay,), steps=50)
    before, after = train(setting, grid, seed, biases)
    np.testing.assert_allclose(after[0], loss, rtol=1e-4)
    assert before[0] == before[1] > after[0]  # no rank moves the frozen network at the start


def test_construction_has_the_printed_medians():
    rows = [each for each in medians.printed() if each.run is None and each.rank < 8]
    assert [each.rank for each in rows] == list(range(8))
    for each in rows:
        ours = statistics.median(medians.constructed(Setting(), each.rank))
        # float32's rounding: PyTorch itself is 5e-5 away on another processor than the authors'.
        np.testing.assert_allclose(ours, each.median, rtol=1e-4)
    floor = [each.median for each in medians.printed() if each.run is None and each.rank >= 8]
    assert len(floor) == 9 and max(floor) < 1e-9


@pytest.mark.usefixtures("standard_promotion")
def test_construction_on_a_pretrained_network_is_as_the_readme_prints():
    setting = Setting(width=8, equal_singular_values=True, pretrained=True)
    pair = draw(setting, 123)
    loss = error_on_test(setting, pair, construct(setting, pair, 123, 2), 123)
    assert f"{loss:.4f}" == "0.0041"


@pytest.mark.parametrize("width, depth", [(16, 2), (12, 3), (9, 2)])
def test_the_threshold_is_exact(width, depth):
    setting = Setting(width=width, frozen_depth=depth, activation="linear", biases=False)
    pair = _double(draw(setting, 0))
    enough = -(-width // depth)
    for rank, exact in ((enough - 1, False), (enough, True)):
        network = construct(setting, pair, 0, rank)
        product = np.linalg.multi_dot([each.w for each in network])
        updates = [
            np.linalg.matrix_rank(new.w - old.w, tol=1e-6)
            for new, old in zip(network, pair.frozen, strict=True)
        ]
        assert max(updates) <= rank
        assert (np.abs(product - pair.target[0].w).max() < 1e-9) == exact


def _double(pair: Pair) -> Pair:
    layers = [[Layer(*(np.float64(x) for x in each)) for each in part] for part in pair[:2]]
    return Pair(*layers, pair.factors)


def test_a_target_deeper_than_the_frozen_network_is_refused():
    with pytest.raises(ValueError, match="the target has 3 layers"):
        dataclasses.replace(Setting(), target_depth=3)


def test_medians_name_what_has_not_run():
    table = medians.beside_printed({2: {(4, 1e-4, 1e-4): 0.0578}}.get)
    rows = {row[0]: row for row in csv.reader(table.to_csv().splitlines())}
    assert len(rows) == 34
    assert rows["fixed, rank 4"][3] == "0.0578"
    assert rows["fixed, rank 8"][3:5] == ["not run", ""]


SMALL = ("--ranks=2", "--seeds=1", "--steps=4", "--networks=random", "--biases=trained")


def test_the_command_goes_on_and_refuses_other_settings(tmp_path):
    run = functools.partial(commands.run, "experiments.expressive_power", f"--out={tmp_path}")
    first, again = run(*SMALL), run(*SMALL, "--seeds=2")
    assert "1 of 1: random, biases trained, seed 0: 12 runs" in first.stdout, first.stderr
    assert "1 of 2" not in again.stdout and "2 of 2: random" in again.stdout
    (row,) = (line for line in first.stdout.splitlines() if line.startswith("| 2 "))
    kept = list(csv.DictReader((tmp_path / "random_trained_0.csv").read_text().splitlines()[1:]))
    least = min(float(each["after"]) for each in kept)
    assert row.split(" | ")[1] == f"{least:.3g}"
    wrong = run(*SMALL, "--steps=5")
    assert "it has runs of other settings; give another --out" in wrong.stderr
    for flag, said in (("--ranks=17", "expected 1 to the width, 16"), ("--biases=x", "unknown")):
        assert said in run(flag).stderr
