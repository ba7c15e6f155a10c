"""One count of parameters: the adapter's, in tables, reports, pictures and the README."""

import csv
import io

import pytest
from fake_records import write
from report_study import made, rendered

from experiments.analysis import parameters, recorded_runs
from experiments.figures import scores
from experiments.tables import config_tables


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


def test_tables_reports_and_pictures_have_the_same_number(runs):
    table = config_tables.render_table("glue", runs, "markdown")
    report = rendered(made(runs), "markdown", resamples=100)
    for text in (table, report):
        (head,) = {line for line in text.splitlines() if parameters.HEADING in line}
        (row,) = (line for line in text.splitlines() if "328,704" in line)
        at = head.split(" | ").index(parameters.HEADING)
        assert row.split(" | ")[at] == "328,704 to 334,080"
    for text in (
        config_tables.render_table("glue", runs, "csv"),
        rendered(made(runs), "csv", resamples=100),
    ):
        line = next(
            each
            for each in csv.DictReader(io.StringIO(text))
            if each["parameters_most"] == "334080"
        )
        assert line["parameters_least"] == "328704"
    assert parameters.NOTE in table and parameters.NOTE in report
    (axes,) = scores.parameters(recorded_runs.find(runs)).axes
    points = {line.get_xdata()[0] for line in axes.lines if line.get_marker() not in ("_", "|")}
    assert points == {334_080, 22_566_146} and axes.get_xlabel() == parameters.HEADING
