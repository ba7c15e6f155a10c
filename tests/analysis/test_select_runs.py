"""Which runs a report takes, what identifies them, and what their parameters are."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_records import write

from configs import quickstart
from experiments.analysis import parameters, recorded_runs
from experiments.analysis.choose_methods import contests
from experiments.analysis.collect_runs import select
from experiments.analysis.recorded_runs import Run
from experiments.reports.tables import config_tables


def selected(root, table=None, size="full"):
    runs, notes = select(recorded_runs.find(root), table, size)
    return [run.folder.name for run in runs], notes


def test_runs_of_no_study_are_not_mixed_into_one(tmp_path):
    write(tmp_path / "study", "glue", "", {"matthews": 0.4})
    write(tmp_path / "alone", "quickstart", "", {"accuracy": 0.4})
    said = ["1 run left out: of no study, so not mixed into one"]
    assert selected(tmp_path) == (["study"], said)
    assert selected(tmp_path, "quickstart") == (["alone"], [])


def test_combined_and_imported_adapters_are_no_runs_of_a_method(tmp_path):
    for name, made in (("a", "combined"), ("b", "combined"), ("c", "imported"), ("own", "")):
        changes = {"experiment": made or "quickstart"}
        fields = {"changes": changes, **changes}
        write(tmp_path / name, "quickstart", "", {"accuracy": 0.5 + ord(name[0]) / 1e3}, **fields)
    assert selected(tmp_path) == (
        ["own"],
        ["3 runs left out: combined or imported, so not trained here"],
    )
    found = recorded_runs.find(tmp_path)
    runs, notes = select(found, "combined", "full")
    assert [run.folder.name for run in runs] == ["a", "b"] and notes == []
    with pytest.raises(ValueError, match=r"different results \(completed, completed\): keep one"):
        contests(runs, {})


def test_runs_of_no_registration_are_not_mixed_into_a_registered_study(tmp_path):
    def add(name, registration, config="glue"):
        changes = {"study.registration": registration} if registration else {}
        write(tmp_path / name, config, "", {"matthews": 0.4}, changes=changes)

    add("before", "")
    add("other", "", "studies.against_lora")
    assert selected(tmp_path)[0] == ["before", "other"]
    add("registered", "abc")
    found, notes = selected(tmp_path)
    assert found == ["other", "registered"]
    assert notes == ["1 run left out: of no registration, though their study has one"]
    add("second", "def")
    with pytest.raises(
        ValueError,
        match=r"2 registrations \(.*registered and .*second\): keep the runs of each in the folder",
    ):
        selected(tmp_path)


@pytest.mark.parametrize("tasks", [("sst2", "cola"), ("sst2", "sst2")])
def test_parts_of_a_study_have_folders_and_tasks_of_their_own(tmp_path, tasks):
    for name, task in zip(("16", "8"), tasks, strict=True):
        changes = {"study.registration": f"of {name}"}
        write(tmp_path / name / "run", "glue", f"task={task}", {"matthews": 0.4}, changes=changes)
    found = recorded_runs.find(tmp_path)
    here = f"{tmp_path}/16/run and {tmp_path}/8/run"
    keep = "keep the runs of each in the folder of its own study.json, and give that"
    with pytest.raises(ValueError, match=rf"2 registrations \({here}\): {keep} \(--results\)$"):
        select(found, None, "full", parts=True)
    (tmp_path / "study.json").write_text("{}")  # of one of them
    with pytest.raises(ValueError, match=rf"\({here}\): {keep}"):
        select(found, None, "full", parts=True)
    for name in ("16", "8"):
        (tmp_path / name / "study.json").write_text("{}")
    said = rf"2 registrations: give one of {tmp_path}/8, {tmp_path}/16 \(--results\)"
    with pytest.raises(ValueError, match=said):
        select(found, None, "full")
    if tasks[0] != tasks[1]:
        assert select(found, None, "full", parts=True) == (found, [])
        return
    with pytest.raises(ValueError, match=said):
        select(found, None, "full", parts=True)


def test_tasks_have_the_order_of_the_study_s_columns(tmp_path):
    columns = ("sst2", "stsb", "mrpc", "rte", "cola")  # of against_lora, as it is registered
    for task in columns:
        write(tmp_path / task, "studies.against_lora", f"task={task},row=lora", {"accuracy": 0.4})
    runs = recorded_runs.find(tmp_path)
    known = config_tables.titles(config_tables.tables())
    assert [each.task for each in contests(runs, known)] == [*columns]
    assert [each.task for each in contests(runs, {})] == sorted(columns)
    several = config_tables.titles_of({"rows": {}, "columns": [("A", "b", "x"), ("B", "b", "y")]})
    assert several.column("b") == "b" and [*several.columns] == ["b"]


@pytest.mark.parametrize(("examples", "number"), [(16, (5, 3)), (0, (5, 0))])
def test_runs_that_train_on_all_examples_have_no_draw(examples, number):
    config = quickstart.get_config().to_dict()
    config["data"] |= {"train": examples, "draw": 3}
    record = SimpleNamespace(config={**config, "seed": 5})
    assert Run(Path(), record).number == number


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
