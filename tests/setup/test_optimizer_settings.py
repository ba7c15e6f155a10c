"""The optimiser and the average of a config: what does not go together is said in one line."""

import pytest
import small_model

from experiments.setup.config import parse
from experiments.sweeps.grouping import program_key

FREE = {"train.optimizer": "schedule_free", "optimizer.schedule": "constant"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    smoke = small_model.smoke_configs(tmp_path_factory.mktemp("small"))
    return lambda arg="", **changes: smoke(arg, **changes)


def named(made, changes, arg=""):
    return parse(made(arg, **{name.replace(".", "__"): each for name, each in changes.items()}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.optimizer": "lio"}, "unknown config.train.optimizer 'lio'; nearest: 'lion'"),
        (
            {"train.optimizer": "lion", "optimizer.b2": 0.5},
            "config.optimizer.b2: lion reads learning_rate, weight_decay, b1, momentum only",
        ),
        ({"optimizer.momentum": 0.5}, "config.optimizer.momentum: adamw reads .* only"),
        (
            {"train.optimizer": "schedule_free"},
            "set config.optimizer.schedule=constant, not linear",
        ),
        ({**FREE, "train.ema": 0.9}, "config.train.ema: schedule_free evaluates an average"),
        ({**FREE, "optimizer.b1": 0.0}, "needs config.optimizer.b1 above 0"),
        ({"train.ema": 1.0}, r"config.train.ema must be in \[0, 1\)"),
    ],
)
def test_settings_that_do_not_go_together(made, changes, said):
    with pytest.raises(ValueError, match=said) as caught:
        named(made, changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [FREE, {"train.ema": 0.9}])
def test_a_variant_that_changes_weights_itself_has_no_average(made, changes):
    with pytest.raises(ValueError, match="variant adalora changes weights between steps"):
        named(made, changes, "variant=adalora")


def test_ranks_share_a_program_only_where_padding_changes_nothing(made):
    for optimizer, shared in ((None, True), ("lion", True), ("adafactor", False), ("muon", False)):
        keys = {
            program_key(named(made, {"train.optimizer": optimizer, "variant.rank": rank}))
            for rank in (2, 4)
        }
        assert (len(keys) == 1) == shared, optimizer
    keys = {program_key(named(made, {"train.ema": decay})) for decay in (0.5, 0.9)}
    assert len(keys) == 1
    assert program_key(named(made, {})) not in keys
