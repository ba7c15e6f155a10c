"""A run's folder belongs to one configuration, and no other is written over it."""

import json

import pytest
from reordered import reordered

from lora_jax.records.run_record import claim

CONFIG = {
    "optimizer": {"learning_rate": 1e-3, "betas": (0.9, 0.999)},
    "targets": ["q", "v"],
    "seed": 0,
}


def test_a_folder_is_claimed_once_and_resumed_by_the_same_configuration(tmp_path):
    folder = tmp_path / "runs" / "1"
    assert claim(folder, CONFIG) is False
    assert json.loads((folder / "config.json").read_text())["optimizer"]["betas"] == [0.9, 0.999]
    assert claim(folder, CONFIG) is True
    assert claim(str(folder), reordered(CONFIG, True)) is True
    assert claim(tmp_path / "runs" / "2", CONFIG) is False


def test_a_setting_that_is_null_is_as_good_as_absent(tmp_path):
    """Earlier versions wrote out the settings of a variant that were not set."""
    variants = [{"name": "lora", "rank": None}, {"name": "lora"}, {"name": "lora", "rank": 8}]
    for number, first in enumerate(variants):
        folder = tmp_path / str(number)
        claim(folder, CONFIG | {"variant": first})
        for variant in variants:
            if (variant.get("rank") == 8) == (first.get("rank") == 8):
                assert claim(folder, CONFIG | {"variant": variant}) is True
                continue
            with pytest.raises(
                ValueError, match=r"variant\.rank is (8|absent) there and (8|absent) h"
            ):
                claim(folder, CONFIG | {"variant": variant})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            CONFIG | {"optimizer": {"learning_rate": 3e-4, "betas": (0.9, 0.999)}},
            r"config\.optimizer\.learning_rate is 0\.001 there and 0\.0003 here; name another",
        ),
        (CONFIG | {"seed": 0.0}, r"config\.seed is 0 there and 0\.0 here"),
        (CONFIG | {"new": {"x": 1}}, r"config\.new\.x is absent there and 1 here"),
        ({"optimizer": CONFIG["optimizer"], "seed": 0}, r'targets is \["q","v"\] there and absent'),
        (
            {"a": 1, "b": 2, "seed": 1},
            r"config\.a is absent there and 1 here, config\.b .* \(and 3 more\)",
        ),
    ],
)
def test_another_configuration_is_named_key_by_key(tmp_path, other, message):
    claim(tmp_path, CONFIG)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        claim(tmp_path, other)
    assert (tmp_path / "config.json").read_bytes() == before


def test_folders_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(ValueError, match=r"holds thesis\.tex but no config\.json: name a new"):
        claim(tmp_path, CONFIG)
    with pytest.raises(ValueError, match=r"thesis\.tex is a file"):
        claim(tmp_path / "thesis.tex", CONFIG)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["chapter 1"]
    for content in ("{", "[1]"):
        broken = tmp_path / content
        broken.mkdir()
        (broken / "config.json").write_text(content)
        with pytest.raises(
            ValueError, match=r"config\.json(: expected a JSON object| is not JSON)"
        ):
            claim(broken, CONFIG)


def test_a_claim_that_was_killed_half_way_can_be_repeated(tmp_path):
    (tmp_path / ".config.json.123.tmp").write_text('{"opt')
    assert claim(tmp_path, CONFIG) is False
