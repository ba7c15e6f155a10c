"""Every config file, with every argument that it declares: the schema, plain data, the papers."""

import functools
import importlib
import itertools
import math
import re
import subprocess
import sys
import typing
from collections import Counter
from pathlib import Path
from typing import Any

import paper_averages
import pytest
from ml_collections import ConfigDict

import variants
from configs import (
    common_tasks,
    lora_table2,
    own_data,
    pissa_table3,
    settings,
    vera_table2,
)
from experiments.analysis import published
from experiments.setup.config import fill, parse
from experiments.setup.config_files import config_modules
from lora_jax.data import SPECS

ROOT = Path(__file__).parents[2]
FILES = config_modules()
MODULES = {name: importlib.import_module(each) for name, each in FILES.items()}
STUDIES = [name for name in FILES if hasattr(MODULES[name], "TABLE")]
STUDIES.remove("own_data")  # whose arguments are files


def assert_complete(config: ConfigDict) -> None:
    """All settings are there, of their types; what may be a fraction is written as one."""
    parsed = parse(config.to_dict())
    for name, (_, hint) in settings.fields_of(type(parsed)).items():
        if hint in (float, float | None) and name != "train.epochs":
            section, key = name.split(".")
            assert isinstance(config[section][key], float | None), name
    hints = typing.get_type_hints(variants.find(config.variant.name))
    for key, value in config.variant.items():
        assert key == "name" or type(value) in {hints[key], *typing.get_args(hints[key])}, key


@functools.cache
def every(name: str) -> dict[str, ConfigDict | ValueError]:
    """The config of every combination of the listed values, by the text after the colon."""
    lists = {k: v for k, v in MODULES[name].ARGUMENTS.items() if isinstance(v, tuple)}
    if MODULES[name].ARGUMENTS.get("row") == "lora":  # any method; the study has these
        lists["row"] = MODULES[name].STUDY["rows"]
    lists["size"] = ("smoke",)
    if "source" in lists:
        lists["source"] = ("tsv",)
    second = name == "domain_shift"  # whose second stage begins from the first one's folder
    found: dict[str, ConfigDict | ValueError] = {}
    for values in itertools.product(*lists.values()):
        arg = ",".join(f"{key}={value}" for key, value in zip(lists, values, strict=True))
        try:
            start = ",start_from=runs/first" if second and "stage=target" in arg else ""
            found[arg] = MODULES[name].get_config(arg + start)
        except ValueError as error:
            found[arg] = error
    return found


def full(name: str, **choice: Any) -> dict[str, Any]:
    arg = ",".join(f"{key}={value}" for key, value in choice.items())
    return MODULES[name].get_config(arg).to_dict()


@pytest.mark.parametrize("name", STUDIES)
def test_every_combination_is_of_the_schema(name):
    loaded, made = 0, every(name)
    for arg, config in made.items():
        if isinstance(config, ValueError):  # a method that a paper ran with one of the models only
            assert "has no settings for" in str(config), arg
            continue
        loaded += 1
        assert_complete(config)
        assert config.study.table == config.experiment == name
        assert config.study.size == "smoke"
        assert config.train.max_steps == 4
        assert config.study.model in arg
        assert (config.start_from is not None) == ("stage=target" in arg)
    assert loaded >= min(5, len(made))
    source = ",source=tsv" if "source" in MODULES[name].ARGUMENTS else ""
    unlisted = MODULES[name].get_config(f"seed=3,folder=glue,size=full{source}")
    assert (unlisted.seed, unlisted.data.folder) == (3, "glue")
    assert unlisted.data.source == "tsv" or not source
    assert_complete(unlisted)
    assert unlisted.train.max_steps == {"few_shot": 300, "few_examples": 300}.get(name, 0)


@pytest.mark.parametrize("name", STUDIES)
def test_two_choices_never_share_a_place_in_the_table(name):
    places: dict[tuple[Any, ...], str] = {}
    for arg, config in every(name).items():
        if isinstance(config, ConfigDict):
            study = fill(config.to_dict())["study"]
            place = study["row"], *sorted(study.items())
            assert places.setdefault(place, arg) == arg
    rows, table = {row for row, *_ in places}, MODULES[name].TABLE
    assert set(table["rows"]) <= rows
    assert all(set(answers) <= rows for answers in table["questions"].values())


@pytest.mark.parametrize("name", STUDIES)
def test_a_wrong_argument_is_named(name):
    with pytest.raises(ValueError, match="size 'tiny': expected one of full, smoke"):
        MODULES[name].get_config("size=tiny")
    with pytest.raises(ValueError, match="'rnak=8': expected one of"):
        MODULES[name].get_config("rnak=8")


@pytest.mark.parametrize("name", STUDIES)
def test_what_is_published_as_runnable_runs_and_nothing_else(name):
    module = MODULES[name]
    of_table = module.TABLE["published"]
    if of_table is None:
        return
    cells = [cell for cell in published.load() if (cell.paper, cell.table) == of_table]
    assert cells
    columns = {(task, metric) for _, task, metric in module.TABLE["columns"]}
    others = {(task, metric) for _, task, metric in module.TABLE["printed"]}
    assert not columns & others and others <= {(c.task, c.metric) for c in cells}
    held_to = [c for c in cells if c.runnable and c.task != "average"]
    held_to = [c for c in held_to if (c.task, c.metric) not in others]
    studies = [c.study for c in every(name).values() if isinstance(c, ConfigDict)]
    own = {(study.model, study.row, study.column) for study in studies}
    assert {(c.model, c.row, c.task) for c in held_to} <= own
    assert {(c.model, c.row) for c in cells if c.runnable} <= {place[:2] for place in own}
    assert {(c.task, c.metric) for c in held_to} <= columns
    beside = {cell.model for cell in cells} & {model for model, _, _ in own}
    if name in ("lora_table5", "lora_table6", "lora_table18"):  # GPT's: never beside an encoder's
        assert not beside
    else:
        assert beside


@pytest.mark.parametrize("name", [n for n in STUDIES if MODULES[n].TABLE["published"]])
def test_the_expected_numbers_of_a_docstring_are_the_published_ones(name):
    """Every one that the config can be held to is there, as it is printed."""
    module = MODULES[name]
    said = Counter(map(float, re.findall(r"\d+\.\d+", module.__doc__)))
    others = {(task, metric) for _, task, metric in module.TABLE["printed"]}
    expected = Counter(
        cell.value
        for cell in published.load()
        if (cell.paper, cell.table) == module.TABLE["published"]
        and cell.runnable
        and (cell.task, cell.metric) not in others
    )
    assert not expected - said


BASE = {"model": "roberta_base"}
LARGE = {"model": "roberta_large"}
XXL = {"model": "deberta_v2_xxl"}
V3 = {"model": "deberta_v3_base"}


@pytest.mark.parametrize(
    ("name", "choice", "expected"),
    [
        # batch, epochs, learning rate, length, rank, alpha, weight decay, warm-up ratio
        ("lora_table2", BASE | {"task": "mnli"}, (16, 30, 5e-4, 512, 8, 8.0, 0.1, 0.06)),
        ("lora_table2", LARGE | {"task": "sst2"}, (4, 10, 4e-4, 128, 8, 16.0, 0.1, 0.06)),
        ("lora_table2", XXL | {"task": "qnli"}, (6, 8, 1e-4, 512, 16, 32.0, 0.01, 0.1)),
        ("vera_table2", BASE | {"task": "rte"}, (64, 160, 4e-3, 512, 1024, None, 0.0, 0.06)),
        ("adalora_table1", V3 | {"task": "mnli"}, (32, 7, 5e-4, 256, 12, 16.0, 0.0, 0.1)),
        (
            "pissa_table3",
            V3 | {"task": "cola", "method": "lora"},
            (32, 30, 4e-4, 64, 8, 8.0, 0.0, 0.0),
        ),
        (
            "lora_plus_ratio",
            BASE | {"task": "sst2", "rate": "2e-4", "ratio": 8},
            (32, 10, 2e-4, 128, 8, 8.0, 0.0, 0.0),
        ),
        ("lora_table6", BASE | {"task": "cola"}, (32, 80, 4e-4, 512, 8, 8.0, 0.1, 0.06)),
        (
            "qlora_table3",
            LARGE | {"task": "rte", "method": "lora_nf4_double"},
            (4, 20, 4e-4, 128, 8, 16.0, 0.1, 0.06),
        ),
    ],
)
def test_what_papers_have_for_all_tasks(name, choice, expected):
    """What they print of each task: tests/setup/test_paper_settings.py."""
    c = full(name, **choice)
    variant, optimizer = c["variant"], c["optimizer"]
    assert (
        c["train"]["batch_size"],
        c["train"]["epochs"],
        optimizer["learning_rate"],
        c["data"]["max_length"],
        variant["rank"],
        variant.get("alpha"),
        optimizer["weight_decay"],
        optimizer["warmup_ratio"],
    ) == expected
    assert (c["train"]["select"], c["data"]["train"], c["train"]["evaluations"]) == (
        "best",
        0,
        c["train"]["epochs"],
    )


def test_what_single_papers_ask_for():
    dropout = [full("lora_table2", model=m)["model"]["dropout"] for m in ("minilm", "roberta_base")]
    assert dropout == [False, True]
    adalora = full("adalora_table1", model="deberta_v3_base", method="adalora_b144", task="rte")
    assert (adalora["variant"]["name"], adalora["variant"]["mode"]) == ("adalora", "reference")
    assert adalora["optimizer"]["warmup_steps"] == 200
    ratio = full("lora_plus_ratio", model="roberta_base", task="mnli", ratio=16)
    assert (ratio["variant"]["learning_rate_ratio"], ratio["optimizer"]["b2"]) == (16.0, 0.99)
    assert ratio["also_train"] == ("classifier/.*",)
    storages = {
        method: full("qlora_table3", method=method)["quantize"]["storage"]
        for method in ("lora", "lora_int8", "lora_nf4", "lora_nf4_double")
    }
    assert list(storages.values()) == ["none", "int8", "nf4", "nf4_double"]
    assert full("targets", targets="all_every_other")["targets"][0][1] == {"layers": (0, 6, 2)}
    half = full("targets", targets="all_last_half", model="roberta_base")["targets"]
    assert {settings["layers"] for _, settings in half} == {(6, 12, 1)}
    shift = full("domain_shift", pair="qnli_rte", stage="target", start_from="runs/source")
    assert (shift["data"]["name"], shift["data"]["extra"]) == ("glue/rte", "glue/qnli")
    assert shift["start_from"] == "runs/source"
    with pytest.raises(ValueError, match="start_from: the second run, stage=target, needs the fir"):
        full("domain_shift", pair="qnli_rte", stage="target")


@pytest.mark.parametrize(
    ("model", "hidden", "matrices", "printed"),
    [
        ("roberta_base", 768, 24, 0.3),
        ("roberta_large", 1024, 48, 0.8),
        ("deberta_v2_xxl", 1536, 96, 4.7),
    ],
)
def test_ranks_give_the_printed_parameters(model, hidden, matrices, printed):
    rank = lora_table2.VARIANTS[model]["rank"]
    assert round(matrices * 2 * hidden * rank / 1e6, 1) == printed


def test_table_5_spends_as_much_on_every_choice():
    names = [f"layers/attention/{each}/kernel" for each in ("query", "key", "value", "output")]
    names += ["layers/up/kernel", "layers/down/kernel", "classifier/kernel"]
    for row in MODULES["lora_table5"].CHOICES:
        config = full("lora_table5", row=row)
        ((pattern,), rank) = config["targets"], config["variant"]["rank"]
        matched = [name for name in names if re.search(pattern, name)]
        assert rank * len(matched) == 8 and len(matched) == len(row)
        assert all(name.split("/")[2][0] in row for name in matched)
        assert config["variant"]["alpha"] == 2 * rank


def test_vera_s_ranks_give_the_printed_parameters():
    ranks = vera_table2.RANKS
    assert 24 * (768 + ranks["roberta_base"]) == 43_008
    assert 48 * (1024 + ranks["roberta_large"]) == 61_440


def test_only_mrpc_rte_and_stsb_start_from_mnli():
    for task in ("mrpc", "rte", "stsb"):
        assert full("lora_table2", task=task, start_from="runs/mnli")["start_from"] == "runs/mnli"
        assert full("lora_table2", task=task)["start_from"] is None
    for choice in ({"task": "cola"}, {"task": "rte", "method": "lora_dagger", **LARGE}):
        with pytest.raises(ValueError, match="starts from the pretrained model"):
            full("lora_table2", start_from="runs/mnli", **choice)


def test_small_settings_are_small_and_their_own():
    for name in ("lora_table2", "pissa_table3", "adalora_table1"):
        small = full(name, model="minilm", task="mnli")
        assert (small["data"]["train"], small["train"]["epochs"]) == (8000, 3)
        assert small["model"]["name"] == "minilm" and small["model"]["pool"] == "mean"
    for table in (lora_table2.ROBERTA_BASE, pissa_table3.PISSA):
        assert not any(math.isclose(2e-3, values[2]) for values in table.values())


@pytest.mark.parametrize("name", paper_averages.AVERAGES)
def test_a_table_averages_as_its_paper_does(name):
    columns: dict[str, tuple[str, ...]] = {}
    for _, task, metric in MODULES[name].TABLE["columns"]:
        key = common_tasks.data_name(task)
        columns[key] = (*columns.get(key, ()), metric)
    assert columns == paper_averages.AVERAGES[name]
    assert MODULES[name].TABLE["average"]


def test_glue_has_every_task_of_both_benchmarks():
    names = {full("glue", task=task)["data"]["name"] for task in MODULES["glue"].ARGUMENTS["task"]}
    assert names == set(SPECS)
    assert full("glue", task="rte")["data"]["name"] == "glue/rte"
    assert set(MODULES["glue"].ARGUMENTS["task"]) <= common_tasks.TITLES.keys()


def test_own_data_by_its_columns():
    arg = "train=a.csv,held_out=9,test=c.csv,text=review,label=stars,regression=yes,name=stars"
    config = own_data.get_config(f"{arg},size=smoke,variant=ia3")
    assert_complete(config)
    assert config.data.files.to_dict() == {
        **{"train": "a.csv", "validation": "", "extra": "", "test": "c.csv"},
        **{"text": "review", "second_text": "", "label": "stars", "regression": True},
    }
    assert (config.data.source, config.data.name, config.data.validation) == ("files", "stars", 9)
    assert (config.data.train, config.study.column) == (0, "stars")
    assert not own_data.get_config().data.files.regression
    with pytest.raises(ValueError, match="regression 'maybe': expected one of no, yes"):
        own_data.get_config("regression=maybe")
    with pytest.raises(ValueError, match="validation is a file, and held_out takes its place"):
        own_data.get_config("train=a.csv,validation=b.csv,held_out=9")


def test_configs_are_loaded_without_jax():
    lines = [f"import {module}" for module in FILES.values()]
    lines += ["import sys", "assert not {'jax', 'lora_jax', 'variants'} & set(sys.modules)"]
    subprocess.run([sys.executable, "-c", "; ".join(lines)], cwd=ROOT, check=True)
