"""What the runs of a table cost: which cells it has, their total, and its formats."""

import csv
import importlib
import io
import itertools

import commands
import pytest

from experiments.planning.run_cost import RunCost, StepCost
from experiments.planning.topologies import Accelerator
from experiments.reports.tables.table_cost import CellCost, cell_configs, left_out, table, text

DEVICE = Accelerator(narrow=2e12, wide=1e12, traffic=1e15, memory=5e9)
SMALL, LARGE = StepCost(36e12, 1e9, 2e9, False), StepCost(36e12, 9e9, 18e9, True)
CELLS = [
    CellCost("bert", "lora", "cola", 3, RunCost(SMALL, 200)),
    CellCost("bert", "lora", "own", 3, RunCost(SMALL, None)),
    CellCost("bert", "full", "cola", 2, RunCost(LARGE, 1000)),
]
"""With half of the peaks, a step of the first takes 72 s, one of the last 36 s."""


def test_the_total_is_over_cells_and_seeds():
    said = text(CELLS, "gpu", DEVICE, 0.5)
    rows = [line.split() for line in said.splitlines()[2:5]]
    assert rows[0] == ["bert", "lora", "cola", "3", "200", "36", "1", "4"]
    assert rows[1] == ["bert", "lora", "own", "3", "?", "36", "1", "?"]
    assert rows[2] == ["bert", "full", "cola", "2", "1,000", "36", "9", "10"]
    assert "About 32 hours on one gpu for 5 runs." in said  # 3 * 4 + 2 * 10
    assert "estimate" in said and "50% of the device's peak" in said
    assert "Not in the total: 1 cells" in said
    assert "Too large for 5 GB: 1 cells, such as bert, full, cola;" in said


def test_csv_has_plain_numbers():
    first, second, _ = csv.DictReader(io.StringIO(table(CELLS, DEVICE, 0.5).to_csv()))
    assert float(first["hours a run"]) == 4.0
    assert (second["steps"], second["hours a run"]) == ("", "")


def test_a_table_has_a_cell_for_each_model_method_and_task():
    found = [(each.study.row, each.study.column) for each in cell_configs("lora_table2")]
    # without minilm, which is no model of the paper; two of the others have no dagger set-up
    assert len(found) == 4 * 8
    assert len(list(cell_configs("lora_table2", "minilm"))) == 8
    assert found.count(("lora_dagger", "rte")) == 1
    large = list(cell_configs("lora_table2", "roberta_large"))
    assert {each.model.name for each in large} == {"FacebookAI/roberta-large"}
    assert len(large) == 16
    with pytest.raises(ValueError, match="--table=lora_table4: unknown table; nearest: 'lora_tab"):
        list(cell_configs("lora_table4"))
    with pytest.raises(ValueError, match="--model=bert: no model of lora_table2; nearest: 'robe"):
        list(cell_configs("lora_table2", "bert"))


def test_runs_that_start_from_another_one_are_cells():
    found = [each.study.column for each in cell_configs("domain_shift", "minilm")]
    assert (found.count("source"), found.count("target")) == (4, 4)


def test_a_study_says_that_its_choice_of_rates_is_not_counted():
    assert left_out("lora_table2") == ""
    sentence = "Runs that choose learning rates are left out."
    assert left_out("against_lora") == sentence
    known = CELLS[::2]
    assert "32 hours on one gpu for all 5 runs." not in text(CELLS, "gpu", DEVICE, 0.5)
    assert "for all 5 runs." in text(known, "gpu", DEVICE, 0.5)
    lines = text(known, "gpu", DEVICE, 0.5, sentence).splitlines()
    assert sentence in lines and "About 32 hours on one gpu for 5 runs." in lines


@pytest.mark.parametrize(
    "name", ["against_lora", "against_lora_smollm2", "lora_settings", "lora_table5"]
)
def test_a_study_has_a_cell_for_each_row_and_column_that_it_registers(name):
    study = importlib.import_module(f"configs.studies.{name}").STUDY
    found = [(each.study.row, each.study.column) for each in cell_configs(name)]
    assert sorted(found) == sorted(itertools.product(study["rows"], study["columns"]))


def test_a_table_of_any_variant_says_which_it_counts():
    assert {each.study.row for each in cell_configs("glue", "minilm")} >= {"lora", "lora_nf4"}
    for name in ("glue", "few_shot", "own_data"):
        said = "Only variant=lora is counted, of any variant that the config takes."
        assert left_out(name) == said


def test_numbers_near_a_thousand_have_no_exponent():
    cell = CellCost("bert", "lora", "cola", 1, RunCost(StepCost(999.7e12, 1e9, 2e9, False), 1))
    assert text([cell], "gpu", DEVICE, 0.5).splitlines()[2].split()[5] == "1,000"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--table=glue",), "--device is missing: one of h100, "),
        (
            ("--table=glue", "--topology=h100:1"),
            "--topology would be ignored: --table has all its runs",
        ),
        (
            ("--table=glue", "--device=h100", "--rows=2"),
            "--rows would be ignored: --table has all its runs",
        ),
        (("--topology=h100:1",), "--config is missing: the config that says what to train"),
    ],
)
def test_mistakes(arguments, said):
    done = commands.run("experiments.plan", *arguments)
    assert (done.returncode, done.stderr.splitlines()[1:]) == (1, [])
    assert done.stderr.startswith(f"error: {said}")
