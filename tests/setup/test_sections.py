"""Configs with sections or settings missing: the variant's own defaults, or a line on the rest."""

import copy

import jax
import numpy as np
import official
import pytest
import small_model

from configs import adalora_table1, glue, instruct, quickstart
from configs.settings import DataSettings
from experiments.analysis.collect_runs import settings_of
from experiments.setup import from_config
from experiments.setup.config import fill, parse
from experiments.setup.experiment import build
from experiments.sweeps import grouping, preflight
from experiments.sweeps.trials import Trial
from lora_jax.records import run_record

CONFIGS = {
    "quickstart": fill(quickstart.get_config("").to_dict()),
    "instruct": fill(instruct.get_config("").to_dict()),
}
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


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_of_before_an_optional_setting_came_is_the_same_run(name, tmp_path):
    """As to what may be averaged, and to whose folder it is."""
    config = CONFIGS[name]
    before = without(without(config, "model", "unroll"), "model", "products")
    assert settings_of(parse(before)) == settings_of(parse(config))
    run_record.claim(tmp_path, before)
    assert run_record.claim(tmp_path, config)
    assert config["train"].get("evaluate_first", True)  # only where a config gives it


@pytest.mark.parametrize("name", CONFIGS)
def test_whatever_a_config_lacks_is_named(name):
    config, count = CONFIGS[name], 0
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
    with pytest.raises(ValueError, match=rf"^config\.{key} is no section of settings, but 'x'$"):
        parse({**CONFIGS["quickstart"], key: "x"})


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
        config = CONFIGS["quickstart"] | {"variant": variant, "targets": ("a",)}
        return from_config.make_run_targets(parse(config), steps)

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
    made = from_config.make_run_targets(config, start + end + 1)
    assert {each.total_steps for each in made.values()} == {start + end + 1}
    with pytest.raises(ValueError, match=f"must be below total_steps = {start + end}"):
        from_config.make_run_targets(config, start + end)


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
