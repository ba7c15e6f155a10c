"""What commands say where they find other runs than asked for, or lack what is optional."""

import sys

import numpy as np
import pytest
from fake_records import write

from experiments import report
from experiments.analysis import collect_runs, recorded_runs
from experiments.reports.figures import scores
from experiments.runs import artifacts

CHOSEN = {"layers/query/kernel": np.array([3, 0]), "layers/value/kernel": np.array([1, 2])}


@pytest.fixture
def mixed(tmp_path):
    """Two smoke runs of a study, of which one has failed, and a run of no study."""
    write(tmp_path / "a", "glue", "size=smoke", {"matthews": 0.4})
    write(tmp_path / "b", "glue", "size=smoke,seed=1", {"matthews": None}, status="failed")
    write(tmp_path / "c", "quickstart", "", {"accuracy": 0.4})
    return recorded_runs.find(tmp_path)


def folders(runs):
    return [run.folder.name for run in runs]


def test_a_run_of_no_study_is_not_of_every_size(mixed):
    assert folders(collect_runs.select(mixed, None, "full")[0]) == ["c"]
    assert folders(collect_runs.select(mixed, None, "smoke")[0]) == ["a", "b"]
    assert collect_runs.select(mixed, None, "smoke")[1] == ["1 run left out: of another size"]


def test_sizes_that_completed_runs_have_are_named(mixed, tmp_path):
    assert collect_runs.elsewhere(mixed, "full") == "; there is 1 run of --size=smoke"
    assert collect_runs.elsewhere(mixed, "smoke") == "; there is 1 run of --size=full"
    assert collect_runs.elsewhere([*mixed, *mixed], "smoke") == "; there are 2 runs of --size=full"
    assert collect_runs.elsewhere(mixed[1:2], "full") == ""
    said = r"no run of size full has completed \(1 failed\); there is 1 run of --size=smoke$"
    with pytest.raises(ValueError, match=said):
        scores.draw(tmp_path, "parameters", tmp_path / "x.png")
    scores.draw(tmp_path, "parameters", tmp_path / "x.png", size="smoke")


def test_a_report_of_smoke_runs_names_their_size(mixed, tmp_path):
    with pytest.raises(
        ValueError, match=r"no run of size full has completed \(1 failed\); there is 1"
    ):
        report.compared(tmp_path, mixed[:2], None, "full", (), [])
    (contest,), studies, notes = report.compared(tmp_path, mixed[:2], None, "smoke", (), [])
    assert [run for method in contest.methods for run in method.runs] == list(mixed[:2])
    assert notes == studies == []


def test_ranks_are_drawn_only_where_there_is_something_to_draw_with(tmp_path, monkeypatch):
    artifacts._draw(CHOSEN, tmp_path / "with.png")
    assert (tmp_path / "with.png").exists()
    monkeypatch.delitem(sys.modules, "experiments.runs.rank_map")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    artifacts._draw(CHOSEN, tmp_path / "without.png")
    assert not (tmp_path / "without.png").exists()
