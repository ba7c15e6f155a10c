"""Flags and suggestions set the fields of a variant's class, shipped or a user's own."""

import dataclasses
import importlib
import os
import subprocess
import sys
import types

import own_method
import pytest
import small_model
import tune_command
from absl import flags
from commands import ROOT
from fake_records import write

import variants
from configs import quickstart
from configs.studies import against_lora
from experiments import tune
from experiments.analysis import labels
from experiments.reports.tables.config_tables import render_table
from experiments.setup.config import fill, of_record, parse
from experiments.setup.config_flags import read, read_config
from experiments.setup.from_config import make_targets
from experiments.sweeps import jobs, trials
from experiments.sweeps.sweep_flag import text_of
from lora_jax.files.json_text import config_digest
from lora_jax.records import run_record

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

FILE = str(ROOT / "configs" / "quickstart.py")
SMOKE = f"--config={FILE}:size=smoke"
OWN = f"--config.variant.name={own_method.NAME}"


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory):
    with own_method.installed(tmp_path_factory.mktemp("package")) as folder:
        yield folder


def settings(*given, before=(SMOKE, OWN)):
    """The variant's settings of the config that these flags make."""
    flags = [f"--config.variant.{each}" for each in given]
    return parse(read_config([*before, *flags]).to_dict()).variant.settings


@pytest.mark.parametrize("name", variants.names())
def test_every_field_of_a_shipped_variant_can_be_set(name):
    """To its default, in one command; a field that has none is an integer."""
    fields = {field.name: field.default for field in dataclasses.fields(variants.find(name))}
    fields = {key: 64 if value is None else value for key, value in fields.items()}
    flags = [f"--config.variant.{key}={text_of(value)}" for key, value in fields.items()]
    config = read_config([f"{SMOKE},variant={name}", *flags])
    assert config.variant.to_dict() == {"name": name, **fields}
    assert {key: type(config.variant[key]) for key in fields} == {
        key: type(value) for key, value in fields.items()
    }


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("max_rank=16", 16),
        ("times=3", 3),
        ("factor=3", 3.0),
        ("limit=3", 3.0),
        ("exact=false", False),
        ("exact", True),
        ("kind=12", "12"),
        ("bands=(1,2)", (1, 2)),
        ("bands=7", (7,)),
        ("bands=()", ()),
        ("pair=(2,'b')", (2, "b")),
        ("mixed=3", 3),
        ("mixed=3.0", 3.0),
        ("other='x'", "x"),
        ("other=x", "x"),
    ],
)
def test_a_value_has_the_type_of_the_field(flag, value):
    found = settings(flag)[flag.partition("=")[0]]
    assert (found, type(found)) == (value, type(value))


def test_flags_come_in_any_order_and_form(tmp_path):
    wanted = {"rank": 8, "alpha": 16.0, "times": 3}
    assert settings("times=3") == wanted
    assert settings("times=3", f"name={own_method.NAME}", before=[SMOKE]) == wanted
    (tmp_path / "flags").write_text(f"{OWN}\n--config.variant.times=3\n")
    for given in (["-config.variant.times", "3", OWN], [f"--flagfile={tmp_path / 'flags'}"]):
        assert settings(before=[SMOKE, *given]) == wanted
    assert settings(before=[SMOKE, OWN, "--noconfig.variant.exact"])["exact"] is False


def test_the_class_knows_the_type_better_than_a_file(tmp_path):
    """That has written a fraction as an integer."""
    file = tmp_path / "own.py"
    file.write_text(
        "from configs import common, quickstart\n\n\ndef get_config(arg=None):\n"
        "    config = quickstart.get_config('size=smoke')\n"
        "    config.variant = common.variant('lora', alpha=16)\n    return config\n"
    )
    assert settings("alpha=0.5", before=[f"--config={file}"]) == {"rank": 8, "alpha": 0.5}
    kept = settings(before=[f"--config={file}"])
    assert (kept["alpha"], type(kept["alpha"])) == (16, int)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("tims=3", "variant 'own_package.wide' has no setting 'tims'; nearest: 'times'"),
        ("t_init=3", "variant 'own_package.wide' has no setting 't_init'; nearest: "),
        ("times=many", "flag --config.variant.times=many: expected a whole number"),
        ("times=1.5", "flag --config.variant.times=1.5: expected a whole number"),
        ("times=1_0", "flag --config.variant.times=1_0: '1_0' is not a plainly written"),
        ("limit=inf", "flag --config.variant.limit=inf: 'inf' is not a plainly written"),
        ("max_rank=none", "flag --config.variant.max_rank=none: expected a whole number"),
        ("exact=4", "flag --config.variant.exact=4: "),
        ("bands=(1,", "flag --config.variant.bands=(1,: "),
        ("bands=(1_0,)", "flag --config.variant.bands=(1_0,): '1_0' is not a plainly written"),
        ("bands=(1,'x')", "flag --config.variant.bands=(1,'x'): expected tuple[int, ...]"),
        ("bands=(True,)", "flag --config.variant.bands=(True,): expected tuple[int, ...]"),
        ("pair=(1,2)", "flag --config.variant.pair=(1,2): expected tuple[int, str]"),
        ("pair=(1,)", "flag --config.variant.pair=(1,): expected tuple[int, str]"),
        ("mixed=x", "flag --config.variant.mixed=x: expected int | float | None"),
        ("times.more=3", "config.variant.times.more: no such setting"),
        ("name.more=3", "config.variant.name.more: no such setting; config.variant.name is a s"),
    ],
)
def test_a_mistake_is_one_line(flag, said):
    with pytest.raises(ValueError, match=r"\S") as caught:
        settings(flag)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_package.wyde", ": 'own_package' has no module 'wyde'$"),
        ("other_package.wide", ": PYTHONPATH has no module 'other_package'$"),
        ("lorra", "; nearest: 'lora'"),
        ("a b", "; nearest: '"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("times=3",)])
def test_a_variant_that_cannot_be_imported_is_named(name, said, flags):
    with pytest.raises(ValueError, match=f"^unknown variant '{name}'{said}"):
        settings(f"name={name}", *flags, before=[SMOKE])


def test_flags_that_set_nothing_new_change_no_digest():
    plain = parse(quickstart.get_config("size=smoke").to_dict()).plain
    assert plain["variant"] == {"name": "lora", "rank": 8, "alpha": 16.0}
    for given in ([], ["--config.variant.rank=8"], ["--config.variant.alpha=16"]):
        found = parse(read_config([SMOKE, *given]).to_dict()).plain
        assert config_digest(found) == config_digest(plain)
    other = parse(read_config([SMOKE, "--config.variant.max_rank=8"]).to_dict()).plain
    assert config_digest(other) != config_digest(plain)


def test_a_record_has_the_same_variant():
    """JSON has lists in the place of tuples; older versions recorded null for what was not set."""
    config = fill(read_config([SMOKE, OWN, "--config.variant.bands=(1,2)"]).to_dict())
    recorded = {**config, "variant": {**config["variant"], "bands": [1, 2], "limit": None}}
    assert of_record(recorded).variant == parse(config).variant
    chosen = of_record(recorded).variant
    made = variants.make(chosen.name, **chosen.settings)
    assert made == variants.make(own_method.NAME, rank=8, alpha=16.0, bands=(1, 2))


def made(*specs, arguments=(SMOKE, OWN), **how):
    overrides = trials.overrides_of(FILE, specs, arguments=arguments, **how)
    return trials.make(arguments, overrides)


@pytest.mark.parametrize(("text", "epochs"), [("0.5", 0.5), ("2", 2), ("2.0", 2.0), ("3e-1", 0.3)])
def test_a_setting_that_may_be_a_fraction_takes_one(text, epochs):
    """Also where the file has it as a whole number, whose digest stays."""
    found = read_config([SMOKE, f"--config.train.epochs={text}"]).train.epochs
    assert (found, type(found)) == (epochs, type(epochs))


@pytest.mark.parametrize(("flag", "expected"), [("=true", True), ("=false", False), ("", True)])
def test_a_flag_sets_what_a_config_may_leave_out(flag, expected):
    assert "evaluate_first" not in read_config([SMOKE]).train
    found = read_config([SMOKE, f"--config.train.evaluate_first{flag}"])
    assert found.train.evaluate_first is expected
    assert parse(found.to_dict()).train.evaluate_first is expected


def test_fractions_of_a_config_are_drawn():
    drawn = made("config.train.epochs=uniform:0.5:3", arguments=[SMOKE], trials=4)
    assert all(trial.config.train.epochs % 1 for trial in drawn)
    drawn = made("config.train.epochs=uniform:1:4", arguments=[SMOKE], trials=3)
    assert not any(trial.config.train.epochs % 1 for trial in drawn)
    given = made("config.train.epochs=0.5,2", arguments=[SMOKE])
    assert [trial.config.train.epochs for trial in given] == [0.5, 2]


def test_a_field_is_swept():
    found = made("config.variant.times=2,3", "config.variant.bands=(1,),(1,2)")
    chosen = [trial.config.variant.settings for trial in found]
    wanted = [(2, (1,)), (2, (1, 2)), (3, (1,)), (3, (1, 2))]
    assert [(each["times"], each["bands"]) for each in chosen] == wanted
    assert [trial.name for trial in made("config.variant.times=2,3")] == ["times=2", "times=3"]
    for trial in found:
        assert fill(read_config(trial.arguments).to_dict()) == trial.config.plain


def test_a_field_is_swept_with_the_variant_that_has_it():
    specs = (f"config.variant.name=dora,{own_method.NAME}", "config.variant.max_rank=8,16")
    one, two = made(*specs, arguments=[SMOKE], paired=True)
    assert (one.config.variant.name, one.config.variant.settings["max_rank"]) == ("dora", 8)
    assert (two.config.variant.name, two.config.variant.settings["max_rank"]) == (
        own_method.NAME,
        16,
    )


@pytest.mark.parametrize(
    ("specs", "arguments"),
    [
        (["times=log:2:64", "limit=uniform:2:64"], [SMOKE, OWN]),
        (["times=log:2:64", f"name={own_method.NAME}", "limit=uniform:2:64"], [SMOKE]),
        (["max_rank=log:8:64", "alpha=log:2:64", "name=dora,pissa"], [SMOKE]),
    ],
)
def test_only_integers_are_drawn_for_an_integer(specs, arguments):
    """Also where the file's own variant, LoRA, has no such field."""
    found = made(*(f"config.variant.{spec}" for spec in specs), arguments=arguments, trials=9)
    drawn = [trial.config.variant.settings for trial in found]
    kinds = {key: {type(each[key]) for each in drawn} for key in drawn[0]}
    for key in ("times", "max_rank"):
        assert kinds.get(key, {int}) == {int}
    for key in {"limit", "alpha"} & {spec.partition("=")[0] for spec in specs}:
        assert kinds[key] == {float} and any(each[key] % 1 for each in drawn)


@pytest.mark.parametrize(
    ("spec", "how", "said"),
    [
        ("config.variant.tims=2,3", {}, "every trial: variant 'own_package.wide' has no setting"),
        ("config.variant.times=2,x", {}, "config.variant.times=x: flag --config.variant.times=x: "),
        ("times=2,3", {}, "every trial: the config has no argument 'times', but "),
        ("times=2,3", {"trials": 2}, "times=2: the config has no argument 'times', but "),
    ],
)
def test_a_wrong_sweep_is_one_line(spec, how, said):
    with pytest.raises(ValueError, match=r"\S") as caught:
        made(spec, **how)
    assert str(caught.value).startswith(said)
    by_path = "; a setting is swept by its path, config.variant.times" in str(caught.value)
    assert by_path == spec.startswith("times")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_sweep_trains_a_users_method(package, tmp_path):
    """As a user does it, with PYTHONPATH. Two layers have one matrix of 16 x 16 each."""
    line = [sys.executable, "-m", "experiments.sweep", *small_model.flags(tmp_path), OWN]
    line += ["--config.targets=('query/kernel',)", "--sweep=config.variant.times=2,3", "--noaudit"]
    line += [f"--workdir={tmp_path / 'sweep'}", "--processes=1"]
    environment = {**os.environ, "PYTHONPATH": str(package)}
    ended = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for times in (2, 3):
        record = run_record.read(tmp_path / "sweep" / "trials" / f"times={times}")
        assert record is not None
        wanted = {"name": own_method.NAME, "rank": 4, "alpha": 16.0, "times": times}
        assert record.config["variant"] == wanted
        assert record.parameters_adapters == 2 * (16 + 16) * 4 * times


def test_a_command_may_take_the_text_of_a_config_for_itself():
    """As `benchmarks` does, which makes several configs of it."""
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "A config.", flag_values=values)
    given = "configs/instruct.py:task=piqa"
    assert read(["bench", f"--config={given}"], values) == ["bench"]
    assert values["config"].value == given


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


def suggested(config, name, arg="", **changes):
    given = ",".join(filter(None, (OPEN[config].format(name), arg)))
    found = importlib.import_module(f"configs.{config}").get_config(given)
    found.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return parse(found.to_dict())


@pytest.mark.parametrize("config", OPEN)
def test_a_method_without_a_rank_from_outside(config):
    found = suggested(config, own_method.RANKLESS)
    assert found.variant.name == own_method.RANKLESS
    assert found.variant.settings == {"start": 1.5}
    assert found.targets == ("query/kernel",)
    rates = {"studies.against_lora": 0.02, "instruct": 0.01, "llama2_70b": 0.01}
    assert found.optimizer.learning_rate == rates.get(config, 0.05)
    assert "suggested" not in found.plain


@pytest.mark.parametrize("name", variants.names())
def test_every_shipped_method(name):
    own = variants.find(name).suggested
    small, large = suggested("glue", name), suggested("glue", name, "model=roberta_base")
    for found, rate in ((small, own.small), (large, own.large)):
        assert found.variant.settings == dict(own.settings)
        assert found.optimizer.learning_rate == rate
        assert found.study.row == name
    assert suggested("studies.against_lora", f"{name}_nf4").study.row == f"{name}_nf4"
    assert len(own.tried) == 3 and sorted(own.tried) == list(own.tried)


def test_the_targets_of_ia3_take_its_settings():
    """Only what rescales outputs rescales biases."""
    config = suggested("quickstart", "ia3", variant__biases=True)
    assert [each.adapts_bias for each in make_targets(config).values()] == [True, False]


def test_what_papers_and_studies_say():
    """The numbers that the recorded studies were run with, and IA3's own targets."""
    assert suggested("glue", "vera").optimizer.learning_rate == 2e-2
    assert suggested("glue", "full", "model=roberta_base").optimizer.learning_rate == 2e-5
    assert suggested("studies.against_lora", "pissa").optimizer.learning_rate == 3e-4
    assert suggested("glue", "adalora").variant.settings["mode"] == "reference"
    assert suggested("glue", "hira").variant.settings == {"rank": 8}
    inner = ("down/kernel", {"scales": "inputs"})
    assert suggested("few_shot", "ia3").targets == ("(key|value)/kernel", inner)
    assert len(suggested("few_shot", "dora").targets) == 2


def test_what_is_given_stays():
    given = {"optimizer__learning_rate": 0.5, "targets": ("value/kernel",)}
    found = suggested("glue", own_method.RANKLESS, **given)
    assert (found.optimizer.learning_rate, found.targets) == (0.5, ("value/kernel",))
    config = importlib.import_module("configs.glue").get_config("storage=int8").to_dict()
    config["variant"] |= {"rank": 3, "alpha": None}
    assert fill(config)["variant"] == {"name": "lora", "rank": 3, "alpha": 16.0}
    config["variant"] = {"name": own_method.RANKLESS}  # as a flag does it
    assert fill(config)["study"]["row"] == f"{own_method.RANKLESS}_int8"
    assert fill(fill(config)) == fill(config)


def test_a_wrong_rate_or_variant_is_a_line():
    with pytest.raises(ValueError, match=r"config\.suggested\.rate 'tiny'; nearest: "):
        suggested("glue", "lora", suggested__rate="tiny")
    with pytest.raises(ValueError, match=r"^unknown variant 'lorra'; nearest"):
        suggested("glue", "lorra")


def test_rows_are_named_by_their_methods():
    names = {"lora_plus": "LoRA+", "head_only": "head alone", "miss_nf4_double": "MiSS on NF4 + DQ"}
    names |= {own_method.RANKLESS: "my columns", own_method.NAME: "Wide"}
    names |= {"rate_1e-4": "rate_1e-4", "gone.away": "gone.away"}
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
