"""A sweep says all that is wrong with its trials before any of them starts."""

import json

import pytest
import small_model
from quickstart_sweep import SMOKE, made

from experiments.sweeps import preflight

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_all_that_is_wrong_is_said_before_anything_starts():
    def said(*specs, arguments=SMOKE):
        with pytest.raises(ValueError, match=": ") as caught:
            preflight.check_trials(made(*specs, arguments=arguments))
        return [line.strip() for line in str(caught.value).splitlines()]

    pissa = [*SMOKE, "--config.variant.initialization=pissa"]
    first, second = said("variant=lora,lorra", "config.variant.rank=8,999", arguments=pissa)
    assert first.startswith(
        "variant=lora,rank=999: 'layers/attention/key/kernel': initialization 'pissa' takes rank"
    )
    assert second.startswith(
        "variant=lorra,rank=8; variant=lorra,rank=999: unknown variant 'lorra'"
    )
    (only,) = said("config.data.source=demmo", "config.seed=0:3")
    assert only == "every trial: unknown data.source 'demmo'; nearest: 'demo'"
    (only,) = said("config.targets='quary/kernel'")
    assert "matches no weight; nearest: 'layers/attention/query/kernel'" in only
    (only,) = said("config.optimizer.warmup_steps=8,2")
    assert "warmup_steps=8: config.optimizer.warmup_steps 8 leaves nothing of 8 steps" in only
    (only,) = said("config.data.max_length=2,8")
    assert only.startswith("max_length=2: data set 'rotten_tomatoes/train': max_length 2 leaves no")
    found = made("config.train.max_steps=0,3")
    loops = preflight.check_trials(found)
    assert [(loop.steps, loop.metric) for loop in loops] == [(8, "accuracy"), (3, "accuracy")]


def test_trials_share_the_reading_of_texts_and_keep_none(monkeypatch):
    read, texts = [], object()

    def read_texts(config, task):
        read.append(config.data.max_length)
        return texts

    monkeypatch.setattr(preflight, "read_texts", read_texts)
    once = preflight.Once()
    for trial in made("config.data.max_length=8,16", "config.seed=0:2"):
        preflight.check(trial.config, once)
    assert read == [8, 16]
    assert all(each is not texts for each in once._found.values())


def test_a_model_without_its_weights_is_found_before_anything_starts(tmp_path):
    folder = small_model.write(tmp_path / "bert")
    arguments = [*SMOKE, f"--config.model.name={folder}"]

    def said():
        with pytest.raises(ValueError, match=r"^every trial: ") as caught:
            preflight.check_trials(made("config.seed=0:2", arguments=arguments))
        return str(caught.value)

    assert len(preflight.check_trials(made("config.seed=0:2", arguments=arguments))) == 2
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    assert "has shape (16, 32), config.json asks for (16, 48)" in said()
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "the weights have no tensor 'bert.encoder.layer.2." in said()
    (folder / "config.json").write_text(json.dumps(config))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:5000])
    assert "is corrupt or truncated" in said()
    (folder / "model.safetensors").unlink()
    assert f"{folder}: neither model.safetensors nor" in said()
