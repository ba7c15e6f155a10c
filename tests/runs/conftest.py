"""Configs of trials that may be trained as a group, on a small model and few sentences."""

import pytest
import small_model
from group_trials import config


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return small_model.write(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    return small_model.write_reviews(tmp_path_factory.mktemp("reviews"), train=32, validation=32)


@pytest.fixture(scope="module")
def config_of(model, reviews):
    """Configs of four steps, with two evaluations, on a small model and few sentences."""

    def make(**changes):
        data = {f"data__{name}": value for name, value in reviews.items()}
        return config(str(model), **data, **changes)

    return make


@pytest.fixture(scope="module")
def two_kinds(config_of):
    """Configs of trials that adapt a square kind of matrix and another one."""
    return lambda **changes: config_of(**{"targets": ("query/kernel", "down/kernel"), **changes})


@pytest.fixture(scope="module")
def tiny(config_of):
    """Configs of three trials of two steps with few adapters, for what goes wrong."""

    def make(number=3, **changes):
        few = {"targets": ("query/kernel",), "data__train": 16, **changes}
        return [config_of(seed=seed, **few) for seed in range(number)]

    return make


@pytest.fixture(scope="module")
def chosen(two_kinds):
    """Trials of one group that differ in all that they may, saved as they were at their best."""
    best = {"train__select": "best", "variant__dropout": 0.1, "data__train": 31}
    rate = {"optimizer__learning_rate": 3e-2, "optimizer__warmup_ratio": 0.4}
    return [
        two_kinds(**best),
        two_kinds(seed=1, variant__rank=3, variant__alpha=5.0, **rate, **best),
        two_kinds(seed=2, optimizer__clip=0.1, data__draw=1, **{**best, "variant__dropout": 0.2}),
    ]
