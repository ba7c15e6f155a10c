"""What identifies a run among those of a cell."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from configs import quickstart
from experiments.analysis.recorded_runs import Run


@pytest.mark.parametrize(("examples", "number"), [(16, (5, 3)), (0, (5, 0))])
def test_runs_that_train_on_all_examples_have_no_draw(examples, number):
    config = quickstart.get_config().to_dict()
    config["data"] |= {"train": examples, "draw": 3}
    record = SimpleNamespace(config={**config, "seed": 5})
    assert Run(Path(), record).number == number
