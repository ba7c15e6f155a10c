"""Each setting of training changes what is trained, alone and in a group."""

import jax
import numpy as np
import pytest

from experiments.runs.group import Group
from experiments.setup.experiment import build
from experiments.setup.load import load
from lora_jax.training.step import eval_params

pytestmark = pytest.mark.usefixtures("standard_promotion")
BASE = {"train__ema": 0.5, "variant__dropout": 0.2, "optimizer__weight_decay": 0.05}
NUMBERS = {
    "optimizer__learning_rate": 3e-3,
    "optimizer__weight_decay": 0.3,
    "optimizer__clip": 1e-3,
    "optimizer__b1": 0.5,
    "optimizer__b2": 0.7,
    "optimizer__eps": 1e-2,
    "optimizer__warmup_steps": 3,
    "optimizer__warmup_ratio": 0.9,
    "train__ema": 0.9,
    "variant__alpha": 3.0,
    "variant__dropout": 0.6,
    "variant__scale": "alpha",
    "variant__initialization": "normal",
    "seed": 5,
}
KINDS = {
    "optimizer__schedule": "cosine",
    "optimizer__head_learning_rate": 0.5,
    "variant__learning_rate_ratio": 9.0,
    "train__optimizer": "sgd",
    "train__accumulate": 2,  # whose parts have dropout of their own
    "model__products": "bfloat16",
    "model__pool": "cls",
    "also_train": (),
}


def averages(group):
    """What each trial of a group has to evaluate after three steps."""
    program = group.program("each")
    states = program.start(group.start())
    batches = [trial.batches(0) for trial in group.experiments]
    for _ in range(3):
        states, _ = program.step(states, [next(each) for each in batches])
    found = (eval_params(program.pick(states, n)) for n in range(len(batches)))
    return [np.concatenate([np.ravel(x) for x in jax.tree.leaves(each)]) for each in found]


@pytest.fixture(scope="module")
def made(config_of):
    """Makes a trial by one setting that differs; those of one model share its weights."""
    few = {"targets": ("down/kernel",), "data__train": 32, **BASE}
    loaded = {}

    def make(**changes):
        config = config_of(**{**few, **changes})
        key = repr((config.model, config.data))
        loaded[key] = loaded.get(key) or load(config)
        return build(config, loaded[key])

    return make


@pytest.fixture(scope="module")
def usual(made):
    """Those of the trial that differs in nothing, by itself."""
    with jax.numpy_dtype_promotion("standard"):
        return averages(Group.of([made()], alone=True))[0]


@pytest.mark.slow
def test_each_number_acts_in_a_group_as_it_does_alone(made, usual):
    trials = [made(), *(made(**{name: value}) for name, value in NUMBERS.items())]
    first, *others = averages(Group.of(trials))
    np.testing.assert_allclose(first, usual, rtol=1e-3, atol=1e-5)
    for name, trial, found in zip(NUMBERS, trials[1:], others, strict=True):
        assert not np.allclose(found, usual, rtol=1e-4, atol=1e-7), name
        if name in ("optimizer__clip", "train__ema", "optimizer__weight_decay"):  # of the step
            np.testing.assert_allclose(
                found, averages(Group.of([trial], alone=True))[0], rtol=1e-3, atol=1e-5
            )


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_acts(made, usual, name):
    (other,) = averages(Group.of([made(**{name: KINDS[name]})], alone=True))
    assert usual.shape != other.shape or not np.allclose(usual, other, rtol=1e-4, atol=1e-7)
