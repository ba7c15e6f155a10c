"""A config becomes typed settings: each has the type of its field, or a line names it.

A run's config.json is a config, too: the same run again, or one with other settings.
"""

import copy
import dataclasses
import json
import types
import typing
from collections.abc import Mapping

import jax
import numpy as np
import official
import pytest
import small_model

from configs import adalora_table1, glue, instruct, qlora_llama, quickstart
from configs.settings import DataSettings
from experiments.analysis.recorded_runs import settings_of as averaged_settings
from experiments.setup import from_config
from experiments.setup.config import fill, of_record, parse
from experiments.setup.config_flags import read_config
from experiments.setup.experiment import build
from experiments.sweeps import grouping, preflight, trials
from experiments.sweeps.grouping import program_key
from experiments.sweeps.trials import Trial
from lora_jax.files.json_text import config_digest, plain
from lora_jax.records import run_record

CONFIGS = {
    module.__name__.rpartition(".")[2]: fill(module.get_config("").to_dict())
    for module in (quickstart, instruct, adalora_table1, qlora_llama)
}
"""Of both kinds of tasks, without a place in a table and with one."""
OTHERS = ("x", 3, 0.5, True, ("x",), {"x": 1}, None, object())
"""Values of every type that a setting may have, and of others."""
TAKE = {str: str, int: int, float: (int, float), tuple: tuple, Mapping: dict}
"""What a setting takes by the type of its field, but for what is the only one of its type."""


def settings_of(parsed):
    """The name and type of every setting, but those of the variant, which are its own fields'.

    A config that belongs to no table has no `study`.
    """
    for name, hint in typing.get_type_hints(type(parsed)).items():
        section = getattr(parsed, name)
        if name == "study" and name not in parsed.plain:
            continue
        if dataclasses.is_dataclass(section) and name != "variant":
            for own, kind in typing.get_type_hints(type(section)).items():
                yield f"{name}.{own}", kind
        elif name not in ("plain", "variant", "study"):
            yield name, hint


def changed(config, name, value):
    made = copy.deepcopy(config)
    *above, last = name.split(".")
    (made[above[0]] if above else made)[last] = value
    return made


def takes(hint, value):
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = [typing.get_origin(kind) or kind for kind in kinds]
    if value is None or isinstance(value, bool):
        return type(value) in kinds
    return any(isinstance(value, TAKE[kind]) for kind in kinds if kind in TAKE)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_setting_of_another_type_is_named_in_a_line(name):
    config, refused = CONFIGS[name], 0
    for setting, hint in settings_of(parse(config)):
        for value in OTHERS:
            if takes(hint, value):
                continue
            with pytest.raises(ValueError, match=rf"^config\.{setting} must be ") as caught:
                parse(changed(config, setting, value))
            assert "\n" not in str(caught.value)
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("name", CONFIGS)
def test_an_unknown_setting_gets_the_nearest(name):
    config = CONFIGS[name]
    for setting, _ in settings_of(parse(config)):
        section, dot, own = setting.partition(".")
        if dot and section != "study":  # which may note more
            said = rf"^config\.{section} has no setting '{own}_'; nearest: '{own}'"
            with pytest.raises(ValueError, match=said):
                parse(changed(config, f"{setting}_", 1))


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_are_those_of_the_config(name):
    config = CONFIGS[name]
    parsed = parse(config)
    assert parsed.plain is config
    found = {setting for setting, _ in settings_of(parsed)}
    for setting in found:
        above, _, own = setting.rpartition(".")
        given = (config[above] if above else config).get(own)
        value = getattr(getattr(parsed, above) if above else parsed, own)
        absent = {"train.evaluate_first": False, "study.registration": ""}
        assert value == (absent.get(setting) if given is None else given)
    sections = {key for key, value in config.items() if isinstance(value, dict)}
    assert {setting.partition(".")[0] for setting in found} | {"variant"} >= sections
    chosen = {key: value for key, value in config["variant"].items() if value is not None}
    assert {"name": parsed.variant.name, **parsed.variant.settings} == chosen


def test_lists_of_json_are_tuples():
    config = changed(CONFIGS["quickstart"], "targets", ["a", ["b", {"rank": 2}]])
    assert parse(config).targets == ("a", ["b", {"rank": 2}])
    config = changed(CONFIGS["quickstart"], "quantize.patterns", ["a"])
    assert parse(config).quantize.patterns == ("a",)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_record_that_lacks_a_setting_has_its_default(name):
    """As of an earlier version, which also had a setting that is no more."""
    config = CONFIGS[name]
    whole, count = of_record(config), 0
    assert whole == parse(config)
    for setting, _ in settings_of(whole):
        section, dot, own = setting.partition(".")
        if not dot:
            continue
        (field,) = (f for f in dataclasses.fields(getattr(whole, section)) if f.name == own)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            continue
        less = changed(config, f"{section}.no_more", 1)
        less[section].pop(own, None)
        made = getattr(of_record(less), section)
        default = field.default_factory() if callable(field.default_factory) else field.default
        assert made == dataclasses.replace(getattr(whole, section), **{own: default})
        count += 1
    assert count > 30


TWO = {name: CONFIGS[name] for name in ("quickstart", "instruct")}
"""One of each kind of task."""
FREE = {"model/unroll", "model/products", "train/evaluate_first", "train/init_batches"}
FREE |= {"train/optimizer", "train/ema", "optimizer/momentum"}
"""Settings that a run does without."""


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return small_model.smoke_configs(tmp_path_factory.mktemp("small"))


def without(config, *path):
    changed = copy.deepcopy(config)
    section = changed
    for name in path[:-1]:
        section = section[name]
    del section[path[-1]]
    return changed


@pytest.mark.parametrize("name", TWO)
def test_a_run_of_before_an_optional_setting_came_is_the_same_run(name, tmp_path):
    """As to what may be averaged, and to whose folder it is."""
    config = TWO[name]
    before = without(without(config, "model", "unroll"), "model", "products")
    assert averaged_settings(parse(before)) == averaged_settings(parse(config))
    run_record.claim(tmp_path, before)
    assert run_record.claim(tmp_path, config)
    assert config["train"].get("evaluate_first", True)  # only where a config gives it


@pytest.mark.parametrize("name", TWO)
def test_whatever_a_config_lacks_is_named(name):
    config, count = TWO[name], 0
    parse(config)
    sections = [key for key, value in config.items() if isinstance(value, dict)]
    assert len(sections) > 5
    for key in [key for key in config if key != "generate"]:
        with pytest.raises(
            ValueError, match=f"^the config has no {key}; configs/{name}.py has all"
        ):
            parse(without(config, key))
    for section in sections:
        for key in config[section]:
            changed = without(config, section, key)
            if (section == "variant" and key != "name") or f"{section}/{key}" in FREE:
                parse(changed)
                continue
            with pytest.raises(
                ValueError, match=rf"^config\.{section} has no .*\b{key}\b"
            ) as caught:
                parse(changed)
            assert "\n" not in str(caught.value)
            count += 1
    assert count > 30


@pytest.mark.parametrize("key", ["model", "optimizer", "variant", "study"])
def test_what_is_no_section(key):
    with pytest.raises(ValueError, match=rf"^config\.{key} is not a section of settings, but 'x'$"):
        parse({**TWO["quickstart"], key: "x"})


def test_a_plain_variant_is_that_with_its_defaults(smoke):
    """As of a config of an earlier version, whose settings are there and null."""
    plain = {**smoke("variant=adalora"), "variant": {"name": "adalora"}}
    full = {**plain, "variant": {"name": "adalora", "rank": None, "total_steps": None}}
    configs = [parse(full), parse(plain)]
    assert configs[0].variant == configs[1].variant
    assert grouping.groups(configs) == [[0, 1]]
    trials = [Trial("a", (), {}, config.plain) for config in configs]
    assert [each.steps for each in preflight.check_trials(trials)] == [8, 8]
    one, other = map(build, configs)
    assert one.adapted.rules == other.adapted.rules
    assert [variant.total_steps for _, variant in other.adapted.rules] == [8] * len(
        one.adapted.rules
    )
    jax.tree.map(np.testing.assert_array_equal, one.trainable, other.trainable)


def test_all_parameters_have_the_dtype_of_a_config(smoke):
    """Those of adapters stay in float32."""
    config = smoke("variant=lora")
    narrow = {**config, "model": {**config["model"], "dtype": "bfloat16"}}
    made = build(parse(narrow))
    leaves = jax.tree.leaves((made.frozen.base, made.trainable["params"]))
    assert {leaf.dtype.name for leaf in leaves} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(made.trainable["adapters"])} == {"float32"}


def test_a_variant_may_say_its_steps():
    def targets(steps, **given):
        variant = {"name": "adalora", **given}
        config = TWO["quickstart"] | {"variant": variant, "targets": ("a",)}
        return from_config.make_targets(parse(config), steps)

    assert targets(8, total_steps=40)["a"].total_steps == 40
    assert targets(8)["a"].total_steps == 8
    with pytest.raises(
        ValueError, match="total_steps must be at most 1,000,000, got 1,000,000,000"
    ):
        targets(10**9)


@pytest.mark.parametrize("task", adalora_table1.ARGUMENTS["task"])
def test_a_schedule_may_be_longer_than_any_placeholder(task):
    """AdaLoRA's phases, 600 to 58,000 steps in the paper, are known before the steps of a run."""
    arg = f"model=deberta_v3_base,method=adalora_b576,task={task}"
    config = parse(fill(adalora_table1.get_config(arg).to_dict()))
    start, end = (config.variant.settings[name] for name in ("t_init", "t_final"))
    assert from_config.placeholder_steps(config) > start + end > from_config.FEW_STEPS
    made = from_config.make_targets(config, start + end + 1)
    assert {each.total_steps for each in made.values()} == {start + end + 1}
    with pytest.raises(ValueError, match=f"must be below total_steps = {start + end}"):
        from_config.make_targets(config, start + end)


def test_a_second_domain_asks_as_the_first_does(tmp_path):
    """Both have pairs and two classes, but COPA asks which of two texts is right."""
    official.write(tmp_path, official.super_glue("RTE") | official.super_glue("COPA"))
    given = {"name": "super_glue/rte", "source": "tsv", "folder": str(tmp_path), "train": 0}
    section = DataSettings(**given, extra="super_glue/copa")
    with pytest.raises(ValueError, match="and 'super_glue/copa', one alone asks which of its"):
        from_config.make_task(section)


def test_parts_without_labels_can_be_left_out(tmp_path):
    config = fill(glue.get_config("task=cola,source=tsv").to_dict())
    config["data"]["folder"] = str(official.write(tmp_path, official.cola()))
    assert list(from_config.make_any_task(parse(config)).unlabelled) == ["test"]
    config["data"]["unlabelled"] = False
    assert not from_config.make_any_task(parse(config)).unlabelled


@pytest.fixture(params=[quickstart, instruct], ids=["classifier", "language model"])
def written(request, tmp_path):
    """The settings of a run, and the file that a run leaves of them."""
    made = request.param.get_config("")
    made.targets = (("query/kernel", {"rank": 2}), "value/kernel")
    settings = parse(made.to_dict())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(plain(settings.plain)), encoding="utf-8")
    return settings, path


def test_the_run_is_the_same(written):
    settings, path = written
    again = parse(read_config([f"--config={path}"]).to_dict())
    assert config_digest(plain(again.plain)) == config_digest(plain(settings.plain))
    assert again == settings


def test_flags_change_it(written):
    """Settings that are null there, too, and those of the variant that it leaves open."""
    settings, path = written
    assert settings.start_from is settings.train.target_score is None
    flags = ("seed=7", "start_from=runs/a", "train.target_score=0.5", "variant.dropout=0.25")
    made = read_config([f"--config={path}", *(f"--config.{each}" for each in flags)])
    again = parse(made.to_dict())
    assert (again.seed, again.start_from, again.train.target_score) == (7, "runs/a", 0.5)
    assert again.variant.settings == {**settings.variant.settings, "dropout": 0.25}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "expected a JSON object, got a list$"),
        ("{", "is not JSON: "),
        ('{"model_type": "bert"}', "' is not the config of a run, such as config.json in its fol"),
    ],
)
def test_files_that_are_no_config(tmp_path, content, said):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        read_config([f"--config={path}"])
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=f"no config file '{path}x.json'"):
        read_config([f"--config={path}x.json"])


def test_it_is_swept_by_its_settings(written):
    settings, path = written
    arguments = [f"--config={path}"]
    overrides = trials.overrides_of(str(path), ["config.seed=3,4"], arguments=arguments)
    found = trials.make(arguments, overrides)
    assert [each.config.seed for each in found] == [3, 4]
    assert [each.config.variant for each in found] == 2 * [settings.variant]
    with pytest.raises(ValueError, match=r"every trial: .* a \.json takes no arguments"):
        trials.make(arguments, [{"variant": "lora"}, {"variant": "dora"}])


def test_it_takes_no_arguments(written):
    with pytest.raises(ValueError, match=r"a \.json takes .* such as --config.variant.name=dora$"):
        read_config([f"--config={written[1]}:variant=dora"])


SCHEDULE_FREE = {"train.optimizer": "schedule_free", "optimizer.schedule": "constant"}


def named(smoke, changes, arg=""):
    return parse(smoke(arg, **{name.replace(".", "__"): each for name, each in changes.items()}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.optimizer": "lio"}, "unknown config.train.optimizer 'lio'; nearest: 'lion'"),
        (
            {"train.optimizer": "lion", "optimizer.b2": 0.5},
            "config.optimizer.b2: lion reads learning_rate, weight_decay, b1, momentum only",
        ),
        ({"optimizer.momentum": 0.5}, "config.optimizer.momentum: adamw reads .* only"),
        ({"train.optimizer": "schedule_free"}, "set config.optimizer.schedule=constant, not lin"),
        (
            {**SCHEDULE_FREE, "train.ema": 0.9},
            "config.train.ema: schedule_free evaluates an average",
        ),
        ({**SCHEDULE_FREE, "optimizer.b1": 0.0}, "needs config.optimizer.b1 above 0"),
        ({"train.ema": 1.0}, r"config.train.ema must be in \[0, 1\)"),
    ],
)
def test_settings_that_do_not_go_together(smoke, changes, said):
    with pytest.raises(ValueError, match=said) as caught:
        named(smoke, changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [SCHEDULE_FREE, {"train.ema": 0.9}])
def test_a_variant_that_changes_weights_itself_has_no_average(smoke, changes):
    with pytest.raises(ValueError, match="variant adalora changes weights between steps"):
        named(smoke, changes, "variant=adalora")


def test_ranks_share_a_program_only_where_padding_changes_nothing(smoke):
    for optimizer, shared in ((None, True), ("lion", True), ("adafactor", False), ("muon", False)):
        keys = {
            program_key(named(smoke, {"train.optimizer": optimizer, "variant.rank": rank}))
            for rank in (2, 4)
        }
        assert (len(keys) == 1) == shared, optimizer
    keys = {program_key(named(smoke, {"train.ema": decay})) for decay in (0.5, 0.9)}
    assert len(keys) == 1
    assert program_key(named(smoke, {})) not in keys
