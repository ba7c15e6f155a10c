"""A study of a file of one's own: registered by its path, and found again without the file."""

import gzip
import types

import commands
import pytest
import tune_command
from fake_records import write

from experiments import report, tune
from experiments.analysis import recorded_runs
from experiments.reports import registered
from experiments.reports.tables.config_tables import render_table
from experiments.reports.tables.table_cost import cell_configs
from experiments.setup import config_files
from experiments.setup.config_flags import settings_of
from experiments.studies import registration
from experiments.sweeps import jobs
from lora_jax.records import packed

FILE = """
from configs import common, common_tasks
from configs.studies import against_lora

STUDY = {
    "rows": ("lora", "dora"),
    "columns": ("sst2", "rte"),
    "reference": "lora",
    "rates": {"per_decade": 2, "around": 0, "most_more": 0},
    "tuning": {"held_out": 16, "seeds": (100,)},
    "seeds": (0, 1, 2),
    "margin": 1.0,
}
ARGUMENTS = common_tasks.arguments(task=("sst2", "rte"), row="lora", model=("minilm",))
TABLE = {"title": "Mine", "rows": {"dora": "DoRA of mine"}, "varies": ("train.batch_size",)}


def get_config(arg=None):
    choice = common.choose(arg, ARGUMENTS)
    config = against_lora.config_of(choice)
    config.update({"study": {"table": "my_study"}})
    if choice["row"] == "dora":
        config.update({"train": {"batch_size": 4}})
    return config
"""
GAINS = {"lora": 0.0, "dora": 0.05}


def tuned(monkeypatch, study, workdir, register=False):
    """Runs whose scores are planted: 80, and a gain that differs a little by seed."""

    def train(configs, folders, names, how):
        for config, folder in zip(configs, folders, strict=True):
            score = 0.8 + GAINS[config.study.row] * (1 + config.seed / 100)
            argument = f"task={config.study.column},row={config.study.row},size=smoke"
            changes = {k: v for k, v in settings_of(config.plain).items() if v is not None}
            write(folder, "studies.against_lora", argument, {"accuracy": score}, changes=changes)
        return [recorded_runs.run_record.read(each) for each in folders]

    monkeypatch.setattr(jobs, "train", train)
    task = types.SimpleNamespace(metric="accuracy")  # of data that are not here
    monkeypatch.setattr(tune, "make_any_task", lambda config: task)
    tune_command.give(monkeypatch, study, workdir, register=register)


def test_its_runs_are_found_without_the_file(tmp_path, monkeypatch):
    path, runs = tmp_path / "my_study.py", tmp_path / "runs"
    path.write_text(FILE)
    places = {(each.study.row, each.study.column) for each in cell_configs(str(path))}
    assert places == {(row, task) for row in GAINS for task in ("sst2", "rte")}
    tuned(monkeypatch, str(path), runs, register=True)
    assert [each.name for each in runs.iterdir()] == ["study.json"]
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "package").mkdir()
    path.rename(tmp_path / "package" / "my_study.py")
    tuned(monkeypatch, "package.my_study", runs)  # the same study, by another way
    (tmp_path / "package" / "my_study.py").unlink()
    known = registration.read(runs)
    assert known.study == "my_study" and known.protocol.columns == ("sst2", "rte")
    found = recorded_runs.find(runs)
    made, (kept,), _ = report.compared(runs, found, None, "smoke", (), [])
    assert len(made) == 2 and kept.followed and not kept.missing
    (dora,) = registered.of_study(kept).methods
    assert (dora.label, dora.verdict) == ("DoRA of mine", "better")
    assert dora.mean == pytest.approx(5 * 1.01)
    assert "DoRA of mine" in render_table("my_study", runs, "markdown", size="smoke")
    ended = commands.run("experiments.power", f"--results={runs}", "--size=smoke")
    begin = "minilm (my_study), smoke runs, differences from LoRA, mean over 2 tasks."
    assert ended.stdout.startswith(begin)


def test_a_packed_study_is_not_trained_again(tmp_path, monkeypatch):
    path, runs = tmp_path / "my_study.py", tmp_path / "runs"
    path.write_text(FILE)
    tuned(monkeypatch, str(path), runs, register=True)
    (runs / packed.RECORDS).write_bytes(gzip.compress(b""))
    with pytest.raises(ValueError, match=f"{runs} is packed: .* --unpack={runs} makes folders"):
        tuned(monkeypatch, str(path), runs)
    assert not any(each.is_dir() for each in runs.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("otter.py", None, "there is no such file; nearest in .*: 'other.py'"),
        ("mine.py", "get_config = STUDIES = 1", "mine.py: it has no STUDY$"),
        ("mine.py", "STUDY = {}\n1 / 0", r"mine\.py, line 2: ZeroDivisionError: division by zero$"),
        ("mine.py", "STUDY = {", "not even Python"),
        ("glue.py", FILE, "this project has a config file 'glue', too: rename yours"),
        ("no_package.mine", None, "PYTHONPATH has no such module"),
        ("against_lorra", None, "unknown study; nearest: 'against_lora'"),
    ],
)
def test_mistakes_in_its_name_or_content(name, content, said, tmp_path):
    (tmp_path / "other.py").touch()
    path = tmp_path / name if name.endswith(".py") else name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        config_files.module_of(str(path), ("STUDY", "get_config"), "study")
    assert "\n" not in str(error.value)


def test_a_config_with_an_error_or_at_another_place_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "my_study.py"
    for old, new, said in (
        ('"my_study"}})', '"mine"}})', "of the table 'mine'; let the config set study.table to"),
        ('"my_study"}})', '"my_study", "column": "x"}})', "of the column 'x'; let the config set"),
        ("return config", "return config.nothing", r"my_study\.py, line 24: .*nothing"),
        ('"batch_size": 4', '"epochs": 0', "dora on sst2: config.train.epochs is 0, but a study "),
        ("return config", "return 1", r"get_config\(\) returns a int, expected a ConfigDict"),
        ('"margin": 1.0', '"margin": 0', "STUDY of my_study: margin must be above 0"),
        ("STUDY = {", "STUDY = 1, {", "STUDY of my_study must be a mapping"),
    ):
        path.write_text(FILE.replace(old, new))
        with pytest.raises(ValueError, match=said):
            tuned(monkeypatch, str(path), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
