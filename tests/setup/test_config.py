"""A config becomes typed settings: each has the type of its field, or a line names it."""

import copy
import dataclasses
import types
import typing
from collections.abc import Mapping

import pytest

from configs import adalora_table1, instruct, qlora_llama, quickstart
from experiments.setup.config import fill, of_record, parse

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
