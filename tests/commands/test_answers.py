"""What commands say where they find other runs than asked for, or lack what is optional."""

import ast
import functools
import sys

import numpy as np
import pytest
from fake_records import write
from test_imports import ROOT

from experiments import report, tune
from experiments.analysis import collect_runs, recorded_runs
from experiments.figures import scores
from experiments.runs import artifacts
from experiments.sweeps.launchers import local

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
    said = "^no run of size full has completed: nothing to draw; there is 1 run of --size=smoke$"
    with pytest.raises(ValueError, match=said):
        scores.draw(tmp_path, "parameters", tmp_path / "x.png")
    scores.draw(tmp_path, "parameters", tmp_path / "x.png", size="smoke")


def test_a_report_of_smoke_runs_names_their_size(mixed, tmp_path):
    with pytest.raises(
        ValueError, match=r"no run of size full has completed: .*; there is 1 run of"
    ):
        report.compared(tmp_path, mixed[:2], None, "full", (), [])
    (contest,), studies, notes = report.compared(tmp_path, mixed[:2], None, "smoke", (), [])
    assert [run for method in contest.methods for run in method.runs] == list(mixed[:2])
    assert notes == studies == []


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("source=tsv,row=dora", "--argument=source=tsv,row=dora: give --rows=dora"),
        ("task=cola", "--argument=task=cola: give --columns=cola in place of task"),
        ("seed=3", "--argument=seed=3: the study's STUDY says which seeds"),
    ],
)
def test_tuning_takes_no_argument_that_it_would_ignore(argument, said):
    with pytest.raises(ValueError, match=said):
        tune._check_argument(argument)
    tune._check_argument("size=smoke,source=tsv,folder=row")
    tune._check_argument("")


def test_more_processes_than_anybody_has():
    with pytest.raises(ValueError, match="--processes must be at most 10,000, got 1,000,000,000"):
        local.slots(10**9)


@functools.cache
def at_import(path):
    """The modules that a file imports as it is imported itself, and not in a function of it."""
    names, nodes = set(), [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif not isinstance(node, ast.FunctionDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)
    return names


def imported_by(module):
    """All modules that one imports, and those in turn as far as they are in the checkout."""
    found, open_ones = set(), [module]
    while open_ones:
        stem = ROOT / open_ones.pop().replace(".", "/")
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                new = at_import(path) - found
                found |= new
                open_ones += new
    return found


TRAINING = ("train", "sweep", "worker", "tune", "instruct", "quickstart")


@pytest.mark.parametrize("command", TRAINING)
def test_training_imports_nothing_that_draws(command):
    found = imported_by(f"experiments.{command}")
    assert "experiments.runs.artifacts" in found or command == "sweep"
    assert not {name for name in found if name.partition(".")[0] == "matplotlib"}
    assert "matplotlib.figure" in imported_by("experiments.report")  # it sees what there is


def test_ranks_are_drawn_only_where_there_is_something_to_draw_with(tmp_path, monkeypatch):
    artifacts._draw(CHOSEN, tmp_path / "with.png")
    assert (tmp_path / "with.png").exists()
    monkeypatch.delitem(sys.modules, "experiments.runs.rank_map")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    artifacts._draw(CHOSEN, tmp_path / "without.png")
    assert not (tmp_path / "without.png").exists()
