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

pytestmark = pytest.mark.slow

ELSEWHERE = {
    r"experiments\.serve": "tests/serving/test_server.py",
    r"experiments\.sweep .*--search=": "tests/sweeps/test_search.py",
    r"experiments\.tune": "tests/commands/test_studies.py",
    r"experiments\.import_adapter": "tests/commands/test_import_command.py",
    r"experiments\.plan .*--topology": "tests/planning/test_plan.py",
    r"experiments\.sweep .*--track=": "tests/runs/test_tracked_training.py",
    r"benchmarks .*--suite": "tests/benchmarks/test_suites.py",
    r"experiments\.expressive_power": "tests/approximation/test_approximation.py",
    r"experiments\.quickstart": "tests/docs/test_stated_results.py",
    r"experiments\.train .*configs/quickstart": "tests/docs/test_document_commands.py",  # `reader`
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


def elsewhere(module: str, flags: list[str]) -> set[str]:
    """The entries of `ELSEWHERE` that match a command."""
    return {line for line in ELSEWHERE if re.match(line, " ".join([module, *flags]))}


def by_page() -> dict[str, list[tuple[str, ...]]]:
    """The commands to run for each page; what reads runs goes with the page that trains them."""
    trains, pages = {}, {}
    for place, module, flags in documents.project_commands():
        if elsewhere(module, flags):
            continue
        given = dict(flag.partition("=")[::2] for flag in flags)
        page = trains.get(given.get("--results"), place.partition(":")[0])
        if module in TRAINING:
            workdir = Path(given["--workdir"])
            trains |= dict.fromkeys(map(str, [workdir, *workdir.parents]), page)
        pages.setdefault((module, *small(module, flags)), page)
    return {page: [line for line in pages if pages[line] == page] for page in pages.values()}


PAGES = by_page()


def run(line: tuple[str, ...], folder: Path) -> None:
    ended = commands.run(*line, folder=folder, **commands.with_devices(1))
    assert ended.returncode == 0, f"{line}\n{ended.stderr}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """What commands read: the project, data, a model, a study's results and three runs."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copy(ROOT / "README.md", folder)
    shutil.copytree(ROOT / "docs", folder / "docs")
    for name in ("configs", "experiments"):
        (folder / name).symlink_to(ROOT / name)
    official.write(folder / "glue_data", official.cola() | official.sst2())
    with (folder / "reviews.csv").open("w", newline="") as file:
        rows = [(official.sentence(i), i % 2) for i in range(600)]
        csv.writer(file).writerows([("review", "stars"), *rows])
    small_model.write(folder / "bert")
    shutil.copytree(ROOT / "experiments/results/against_lora", folder / "runs" / "against_lora")
    flags = ["--config=configs/quickstart.py", "--workdir=runs/lora"]
    run(("experiments.train", *small("experiments.train", flags)), folder)
    for name in ("a", "b"):
        shutil.copytree(folder / "runs" / "lora", folder / "runs" / name)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_every_command_ends_well(page, reader, tmp_path):
    """`test_documents` reads the flags of all, and what settings do has tests of its own."""
    shutil.copytree(reader, tmp_path, symlinks=True, dirs_exist_ok=True)
    for line in PAGES[page]:
        run(line, tmp_path)


def test_what_runs_elsewhere_is_shown_and_tested():
    shown = [elsewhere(*line) for _, *line in documents.project_commands()]
    assert set().union(*shown) == ELSEWHERE.keys()
    assert all((ROOT / each).exists() for each in ELSEWHERE.values())
