"""One count of parameters: the adapter's, in tables, reports, pictures and the README."""

import pytest
from fake_records import write

from experiments.analysis import parameters, recorded_runs


@pytest.fixture
def runs(tmp_path):
    """Two that kept different ranks, one that did not complete, and one of an early version."""
    for seed, count in enumerate((328_704, 334_080, None)):
        write(tmp_path / str(seed), "glue", f"seed={seed}", {"matthews": 0.4}, parameters=count)
    write(tmp_path / "3", "glue", "seed=3", {"matthews": None}, parameters=9, status="failed")
    write(tmp_path / "full", "glue", "variant=full", {"matthews": 0.5}, parameters=22_566_146)
    return tmp_path


def test_what_the_adapters_of_completed_runs_have_is_counted(runs):
    found = recorded_runs.find(runs)
    own = [run.record for run in found if run.config.variant.name == "lora"]
    assert parameters.counts(own) == (328_704, 334_080)
    assert parameters.text((328_704, 330_000, 334_080)) == "328,704 to 334,080"
    assert parameters.text((0,)) == "0" and parameters.text(()) == ""
