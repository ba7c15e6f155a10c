"""What a variant's own file suggests reaches every config that leaves it open, and nothing else."""

import importlib
import types

import own_method
import pytest
import tune_command
from fake_records import write

import variants
from configs import quickstart
from configs.studies import against_lora
from experiments import tune
from experiments.analysis import labels
from experiments.setup.config import fill, parse
from experiments.setup.from_config import make_targets
from experiments.sweeps import jobs
from experiments.tables.config_tables import render_table

OPEN = {
    "studies.against_lora": "row={},size=smoke",
    "domain_shift": "variant={},pair=rte_qnli,stage=source",
    "few_shot": "variant={}",
    "glue": "variant={}",
    "instruct": "method={}",
    "llama2_70b": "method={}",
    "own_data": "variant={},train=a.csv",
    "quickstart": "variant={}",
}
"""The configs that take any variant, and how."""


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory):
    with own_method.installed(tmp_path_factory.mktemp("package")) as folder:
        yield folder


def made(config, name, arg="", **changes):
    given = ",".join(filter(None, (OPEN[config].format(name), arg)))
    found = importlib.import_module(f"configs.{config}").get_config(given)
    found.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return parse(found.to_dict())


@pytest.mark.parametrize("config", OPEN)
def test_a_method_without_a_rank_from_outside(config):
    found = made(config, own_method.RANKLESS)
    assert found.variant.name == own_method.RANKLESS
    assert found.variant.settings == {"start": 1.5}
    assert found.targets == ("query/kernel",)
    rates = {"studies.against_lora": 0.02, "instruct": 0.01, "llama2_70b": 0.01}
    assert found.optimizer.learning_rate == rates.get(config, 0.05)
    assert "suggested" not in found.plain


@pytest.mark.parametrize("name", variants.names())
def test_every_shipped_method(name):
    own = variants.find(name).suggested
    small, large = made("glue", name), made("glue", name, "model=roberta_base")
    for found, rate in ((small, own.small), (large, own.large)):
        assert found.variant.settings == dict(own.settings)
        assert found.optimizer.learning_rate == rate
        assert found.study.row == name
    assert made("studies.against_lora", f"{name}_nf4").study.row == f"{name}_nf4"
    assert len(own.tried) == 3 and sorted(own.tried) == list(own.tried)


def test_the_targets_of_ia3_take_its_settings():
    """Only what rescales outputs rescales biases."""
    config = made("quickstart", "ia3", variant__biases=True)
    assert [each.adapts_bias for each in make_targets(config).values()] == [True, False]


def test_what_papers_and_studies_say():
    """The numbers that the recorded studies were run with, and IA3's own targets."""
    assert made("glue", "vera").optimizer.learning_rate == 2e-2
    assert made("glue", "full", "model=roberta_base").optimizer.learning_rate == 2e-5
    assert made("studies.against_lora", "pissa").optimizer.learning_rate == 3e-4
    assert made("glue", "adalora").variant.settings["mode"] == "reference"
    assert made("glue", "hira").variant.settings == {"rank": 8}
    inner = ("down/kernel", {"scales": "inputs"})
    assert made("few_shot", "ia3").targets == ("(key|value)/kernel", inner)
    assert len(made("few_shot", "dora").targets) == 2


def test_what_is_given_stays():
    given = {"optimizer__learning_rate": 0.5, "targets": ("value/kernel",)}
    found = made("glue", own_method.RANKLESS, **given)
    assert (found.optimizer.learning_rate, found.targets) == (0.5, ("value/kernel",))
    config = importlib.import_module("configs.glue").get_config("storage=int8").to_dict()
    config["variant"] |= {"rank": 3, "alpha": None}
    assert fill(config)["variant"] == {"name": "lora", "rank": 3, "alpha": 16.0}
    config["variant"] = {"name": own_method.RANKLESS}  # as a flag does it
    assert fill(config)["study"]["row"] == f"{own_method.RANKLESS}_int8"
    assert fill(fill(config)) == fill(config)


def test_a_wrong_rate_or_variant_is_a_line():
    with pytest.raises(ValueError, match=r"config\.suggested\.rate 'tiny'; nearest: "):
        made("glue", "lora", suggested__rate="tiny")
    with pytest.raises(ValueError, match=r"^unknown variant 'lorra'; nearest"):
        made("glue", "lorra")


def test_rows_are_named_by_their_methods():
    names = {"lora_plus": "LoRA+", "head_only": "head alone", "miss_nf4_double": "MiSS on NF4 + DQ"}
    names |= {own_method.RANKLESS: "my columns", own_method.NAME: "Wide"}
    names |= {"rate_1e-4": "rate 1e-4", "gone.away": "gone.away"}
    assert {key: labels.method(key) for key in names} == names
    ordered = ["bitfit", "head_only_nf4", "lora", "lora_nf4", "dora", "gone.away", "lora_fa"]
    assert labels.in_order(reversed(ordered)) == ordered


def test_a_method_from_outside_is_a_row_of_a_study(tmp_path, monkeypatch):
    """From a list on the command line, with the rates of its file; the table shows its title."""
    ran = []

    def train(configs, folders, names, how):
        ran.extend((each.optimizer.learning_rate, each.seed) for each in configs)
        argument, scores = f"task=cola,row={own_method.RANKLESS},size=smoke", {"matthews": 0.5}
        return [
            write(folder, "studies.against_lora", argument, scores, changes={"seed": each.seed})
            for folder, each in zip(folders, configs, strict=True)
        ]

    def tuned(*rows):
        given = {"rows": list(rows), "columns": ["cola"]}
        tune_command.give(monkeypatch, "against_lora", tmp_path, **given)

    monkeypatch.setattr(jobs, "train", train)
    task = types.SimpleNamespace(metric="eval_loss")  # of data that are not here
    monkeypatch.setattr(tune, "make_any_task", lambda config: task)
    with pytest.raises(ValueError, match="'own_package' has no module 'colums'"):
        tuned("lora", "own_package.colums")
    with pytest.raises(ValueError, match=r"cola: .* where higher is better, not eval_loss"):
        tuned("lora")
    task.metric = "matthews"
    assert not (tmp_path / "study.json").exists()
    tuned("lora", own_method.RANKLESS)
    grid = [0.002, 0.0063, 0.02, 0.063, 0.2]
    seeds = against_lora.STUDY["tuning"]["seeds"]
    mine = [each for each in ran if each[0] in grid]
    tuning = [each for each in mine if each[1] in seeds]
    assert {*tuning} == {(rate, seed) for rate in grid for seed in seeds}
    shown = render_table("against_lora", tmp_path / "cola" / "runs", "csv", size="smoke")
    assert f"{own_method.RANKLESS},my columns," in shown


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("suggested", "size"),
        ("suggested", "rate"),
        ("suggested", "targets"),
        ("optimizer", "learning_rate"),
        ("quantize", "storage"),
    ],
)
def test_a_section_that_lacks_a_setting_is_named(section, name):
    """Such as in a config.json that somebody has edited."""
    config = quickstart.get_config().to_dict()
    del config[section][name]
    with pytest.raises(ValueError, match=rf"^config\.{section} has no {name}"):
        parse(config)
