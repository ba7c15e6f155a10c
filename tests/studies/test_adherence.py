"""Runs are compared with what was registered: settings, rates, seeds and the choice of rates."""

import dataclasses
import importlib
import shutil

import pytest
from fake_records import write

from experiments import tune
from experiments.analysis import recorded_runs
from experiments.studies import protocol, registration
from experiments.studies.adherence import adherence, as_registered, of_folder
from experiments.studies.protocol import Protocol, Tuning

STUDY = "against_lora"
MODULE = importlib.import_module(f"configs.studies.{STUDY}")
PROTOCOL = dataclasses.replace(
    Protocol.of(MODULE.STUDY, "STUDY"),
    rows=("lora", "dora"),
    columns=("cola",),
    seeds=(0, 1),
    tuning=Tuning(held_out=50, seeds=(100, 101)),
)
HELD_OUT, TUNING = PROTOCOL.tuning.held_out, PROTOCOL.tuning.seeds
ARGUMENT = "size=smoke"


@pytest.fixture
def study(tmp_path):
    """A registered study without runs: its folder and its registration."""
    cells = tune.make_cells(MODULE, PROTOCOL, ARGUMENT)
    planned = {task: {cell.row: cell.planned for cell in row} for task, row in cells.items()}
    return tmp_path, registration.register(tmp_path, STUDY, PROTOCOL, planned)


def run(
    study, row, place, number, score=0.5, *, final=False, status="completed", again="", **changes
):
    """Write the record of a run with the rate of a place."""
    folder, registered = study
    rate = protocol.rate_at(registered.cells["cola"][row].middle, place, PROTOCOL.rates.per_decade)
    changes = {
        "optimizer.learning_rate": rate,
        "study.registration": registered.digest,
        "data.validation": 0 if final else HELD_OUT,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    where = folder / ("runs" if final else f"tuning/{place}") / row / f"{number}{again}"
    arg = f"task=cola,row={row},seed={number},{ARGUMENT}"
    write(where, f"studies.{STUDY}", arg, {"matthews": score}, changes=changes, status=status)


def tuned(study, best, places=range(-2, 3)):
    for row, at in best.items():
        for place in places:
            for seed in TUNING:
                run(study, row, place, seed, 0.5 - 0.1 * abs(place - at))


def scored(study, best, seeds=(0, 1)):
    for row, place in best.items():
        for seed in seeds:
            run(study, row, place, seed, final=True)


def found(study):
    folder, registered = study
    return adherence(registered, recorded_runs.find(folder))


def test_runs_as_registered(study):
    best = {"lora": 0, "dora": 1}
    tuned(study, best)
    scored(study, best, seeds=(0,))
    assert found(study).followed
    assert found(study).missing == [f"{row} on cola: 1 of 2 seeds" for row in best]
    scored(study, best)
    whole = found(study)
    assert whole.followed and not whole.missing and not whole.edges
    assert len(whole.counted) == whole.planned == 4
    assert {run.record.seed for run in whole.counted} == {0, 1}


def test_a_best_rate_where_the_rule_ends_is_said(study):
    tuned(study, {"lora": 0, "dora": 4}, places=range(-2, 5))
    assert found(study).edges == ["dora on cola: the highest"]


def test_a_method_without_a_rate_is_said(study):
    """Each rate of DoRA diverged with one of two seeds."""
    tuned(study, {"lora": 0})
    for place in range(-2, 3):
        run(study, "dora", place, TUNING[0])
        run(study, "dora", place, TUNING[1], status="diverged")
    scored(study, {"lora": 0})
    whole = found(study)
    assert (whole.untrained, whole.missing) == (["dora on cola"], [])
    assert len(whole.counted) == whole.planned == 2


def test_a_failed_run_is_still_to_be_run(study):
    tuned(study, {"lora": 0, "dora": 0})
    scored(study, {"dora": 0})
    scored(study, {"lora": 0}, seeds=(0,))
    run(study, "lora", 0, 1, final=True, status="failed")
    assert found(study).missing == ["lora on cola: 1 of 2 seeds"]
    assert len(found(study).counted) == 3


def test_a_best_rate_at_the_edge_asks_for_more_of_all(study):
    best = {"lora": 0, "dora": 2}
    tuned(study, best)
    assert found(study).missing == [f"{row} on cola: 2 of its tuning runs" for row in best]
    scored(study, best)
    (said,) = found(study).departures
    assert said == "lora, dora on cola: scored before all were tuned"
    tuned(study, best, places=[3])
    assert found(study).followed and not found(study).missing


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *[
            ({budget: 16}, "its settings are not those registered for lora")
            for budget in ("train__batch_size", "train__max_steps", "train__epochs", "data__train")
        ],
        ({"study__registration": "0"}, "it does not carry the digest of the registration"),
        ({"data__validation": 7}, "it holds out 7 examples"),
        ({"data__draw": 5}, "its examples are draw 5, not that of seed 0"),
        ({"optimizer__learning_rate": 2e-3}, "learning rate 0.002 is not in the grid"),
        ({"optimizer__learning_rate": 0.0}, "learning rate 0 is not in the grid"),
        ({"seed": 9, "data__draw": 9}, "seed 9 is not registered"),
        ({"study__row": "vera"}, "vera on cola is not registered"),
    ],
)
def test_a_run_that_differs_is_named(study, changes, said):
    run(study, "lora", 0, 0, final=True, **changes)
    (departure,) = found(study).departures
    assert departure.endswith(said) and "runs/lora/0" in departure


def test_another_rate_or_metric_and_more_rates_are_departures(study):
    folder, registered = study
    tuned(study, {"lora": 0, "dora": 0})
    run(study, "dora", 3, TUNING[0])
    scored(study, {"lora": 0, "dora": 1})
    assert found(study).departures == [
        "dora on cola: 1 more rates than the rule gives",
        "dora on cola: 2 runs without the best rate",
    ]
    budgets = {"cola": registration.Budget("accuracy", 100, 3, 0, 16)}
    other = dataclasses.replace(registered, budgets=budgets)
    said = adherence(other, recorded_runs.find(folder)).departures
    assert said[0].endswith("its metric is matthews, not accuracy")


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("other", [{"status": "diverged"}, {"score": 0.9}])
def test_who_runs_a_seed_again_does_not_choose_its_result(study, final, other):
    tuned(study, {"lora": 0, "dora": 0})
    scored(study, {"lora": 0, "dora": 0})
    number = 1 if final else TUNING[1]
    run(study, "dora", 0, number, final=final, again="_copy")
    assert found(study).followed and len(found(study).counted) == 4  # a copy changes nothing
    run(study, "dora", 0, number, final=final, again="_other", **other)
    kept = found(study)
    assert f"seed {number} was run more than once: " in kept.departures[0]
    assert "dora" in kept.missing[0] and len(kept.counted) == (3 if final else 0)
    assert {run.record.seed for run in kept.left_out} >= {number}


def test_runs_that_depart_are_left_out_of_everything(study):
    folder, _ = study
    tuned(study, {"lora": 0, "dora": 0})
    scored(study, {"lora": 0, "dora": 0})
    every = recorded_runs.find(folder)
    run(study, "dora", 1, 0, 0.9, final=True, again="_other_rate")
    run(study, "lora", 0, 9, 0.9, final=True, data__draw=9)
    runs = recorded_runs.find(folder)
    kept, said = as_registered(folder, runs, runs)
    assert [run.folder for run in kept] == [run.folder for run in every]
    assert said == ["2 runs left out: not as the study registered them"]
    assert as_registered(folder, every, every) == (every, [])
    assert of_folder(folder, [], every) == []  # runs of another size or table were selected
    assert len(of_folder(folder, [], [])) == 1


def test_a_copy_in_the_study_s_folder_is_no_second_study(study, tmp_path_factory):
    folder, _ = study
    tuned(study, {"lora": 0, "dora": 0})
    scored(study, {"lora": 0, "dora": 0})
    every = recorded_runs.find(folder)
    shutil.copytree(folder, folder / "a_backup")
    (whole,) = of_folder(folder, recorded_runs.find(folder))
    assert [run.number for run in whole.counted] == [run.number for run in found(study).counted]
    assert len(whole.counted) == 4 and not whole.departures and len(every) == 24
    beside = tmp_path_factory.mktemp("results")
    for name in ("one", "two"):
        shutil.copytree(folder / "a_backup", beside / name)
    with pytest.raises(ValueError, match=r"one and .*two have the same study: give one of them"):
        of_folder(beside, recorded_runs.find(beside))
