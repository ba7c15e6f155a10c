"""A run's config.json is a config: the same run again, or one with other settings."""

import json

import pytest

from configs import instruct, quickstart
from experiments.setup.config import parse
from experiments.setup.config_flags import read_config
from experiments.sweeps import trials
from lora_jax.files.json_text import config_digest, plain


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
