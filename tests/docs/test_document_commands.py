"""The command lines that the documents show end well, on a small model in a folder of its own."""

import csv
import re
import shutil
from pathlib import Path

import commands
import documents
import official
import pytest
import small_model
from documents import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.minutes]

ELSEWHERE = {
    r"experiments\.serve": "tests/serving/test_server.py",
    r"experiments\.sweep .*--search=": "tests/sweeps/test_search.py",
    r"experiments\.tune": "tests/commands/test_studies.py",
    r"experiments\.import_adapter": "tests/commands/test_import_command.py",
    r"experiments\.plan .*--topology": "tests/planning/test_plan.py",
    r"benchmarks .*--suite": "tests/benchmarks/test_suites.py",
    r"experiments\.expressive_power": "tests/approximation/test_approximation.py",
    r"experiments\.quickstart": "tests/docs/test_stated_results.py",
    r"experiments\.train .*configs/instruct": "tests/runs/test_text_runs.py",
    r"experiments\.(report|table|plot) .*--results=runs/sweep": "tests/reports/test_grid.py",
    r"experiments\.report --documents=": "tests/reports/test_registered.py",
    r"experiments\.report .*--(figures|format)=": "tests/reports/test_report_page.py",
    r"experiments\.export .*--run=runs/qlora": "tests/exports/test_export_command.py",
    r".*(configs|runs)/images": "tests/setup/test_own_models.py",
}
"""Lines that take minutes, or need what a small folder lacks, and the tests of what they do."""
TRAINING = ("experiments.train", "experiments.sweep")
SMALL = ["model.name=bert", "data.train=6", "data.max_length=16", "train.batch_size=2"]


def small(module: str, flags: list[str]) -> list[str]:
    """The flags with which a command trains a small model for four steps, or reads such runs."""
    committed = any("experiments/results" in each for each in flags)
    if module == "experiments.plot" and not committed:
        return [*flags, "--size=smoke"]
    if module == "experiments.report":
        return [*flags, "--resamples=100"]
    if any(each.startswith("--methods=full,") for each in flags):
        return [*(each for each in flags if "--methods" not in each), "--methods=lora"]
    if module not in TRAINING:
        return flags
    (config,) = (flag for flag in flags if flag.startswith("--config="))
    path, _, argument = config.partition(":")
    kept = {each for each in argument.split(",") if each and not each.startswith("model=")}
    config = f"{path}:{','.join(sorted(kept | {'size=smoke'}))}"
    others = [flag for flag in flags if not re.match("--(config=|config.data.train|track=)", flag)]
    return [config, *others, *(f"--config.{each}" for each in SMALL), "--noaudit"]


def unread(workdir: str, shown: list[tuple[str, list[str]]]) -> bool:
    """Whether no other command of the documents reads what is in a folder of runs."""
    flags = [flag for module, flags in shown if module not in TRAINING for flag in flags]
    named = {value for flag in flags for value in flag.partition("=")[2].split(",")}
    return named.isdisjoint(map(str, [workdir, *Path(workdir).parents]))


def write_surroundings(folder: Path) -> None:
    """What a reader has beside the commands: the project, data, a model and a study's results."""
    shutil.copy(ROOT / "README.md", folder)
    shutil.copytree(ROOT / "docs", folder / "docs")
    for name in ("configs", "experiments"):
        (folder / name).symlink_to(ROOT / name)
    official.write(folder / "glue_data", official.cola() | official.sst2())
    with (folder / "reviews.csv").open("w", newline="") as file:
        rows = [(official.sentence(i), i % 2) for i in range(600)]
        csv.writer(file).writerows([("review", "stars"), *rows])
    small_model.write(folder / "bert")
    (folder / "runs").mkdir()
    shutil.copytree(ROOT / "experiments/results/against_lora", folder / "runs" / "against_lora")


def test_every_command_ends_well(tmp_path):
    """Of each config, one run is trained, and those that other commands read.

    `test_documents` reads the flags of all, and what settings do has tests of its own.
    """

    def run(module, flags):
        line = (module, *small(module, flags))
        if line in ran:
            return
        ended = commands.run(*line, folder=tmp_path, **commands.with_devices(1))
        ran[line] = "" if ended.returncode == 0 else ended.stderr

    ran, trained = {}, {("experiments.train", "configs/quickstart.py")}
    write_surroundings(tmp_path)
    run("experiments.train", ["--config=configs/quickstart.py", "--workdir=runs/lora"])
    for name in ("a", "b"):  # two runs of the reader's
        shutil.copytree(tmp_path / "runs" / "lora", tmp_path / "runs" / name)
    shown = [(module, flags) for _, module, flags in documents.project_commands()]
    needed = set()
    for module, flags in sorted(shown, key=lambda line: line[0] not in TRAINING):
        others = {line for line in ELSEWHERE if re.match(line, " ".join([module, *flags]))}
        needed |= others
        if others:
            continue
        if module in TRAINING:
            given = dict(flag.partition("=")[::2] for flag in flags)
            config = module, given["--config"].partition(":")[0]
            if config in trained and unread(given["--workdir"], shown):
                continue
            trained.add(config)
        run(module, flags)
    assert {line: said for line, said in ran.items() if said} == {}
    assert needed == ELSEWHERE.keys() and all((ROOT / each).exists() for each in ELSEWHERE.values())
