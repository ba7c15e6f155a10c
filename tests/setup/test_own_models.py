"""A user's own model by a dotted name, on arrays: trained, resumed, exported and read again."""

import jax
import numpy as np
import own_models
import pytest
import safetensors.numpy
from killed import Killed
from one_line import refuses

import experiments
from configs import common, images
from experiments.analysis.recorded_runs import held_out
from experiments.exports import formats
from experiments.runs import predictions, run
from experiments.runs.finished_run import open_run
from experiments.setup.config import parse
from experiments.setup.experiment import Experiment, build
from experiments.setup.own_model import (
    call,
    forward_of,
    load,
    read_texts,
    require_published,
)
from experiments.sweeps import grouping, preflight
from lora_jax.records import run_record

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    for part, count in (("train", 30), ("validation", 10)):
        x, kind = random.normal(size=(count, 6)).astype(np.float32), random.integers(0, 2, count)
        labels = 5 + (x.sum(1) > kind).astype(int)
        np.savez(folder / part, x=x, kind=kind.astype(np.int32), labels=labels)
    return folder


@pytest.fixture(scope="module")
def plain(folder):
    """A config as data, with changes of its settings."""

    def made(**changes):
        arg = f"source=npz,folder={folder},train=train.npz,validation=validation.npz"
        config = images.get_config(arg)
        config.model = common.own_model("own_models.tiny")
        short = {"train": {"batch_size": 8, "epochs": 2, "checkpoint_every": 2, "evaluations": 2}}
        config.update({**short, "targets": ("up/w",), "also_train": ("head",)})
        config.variant = common.variant("lora", rank=2)
        for name, value in changes.items():
            section, _, key = name.partition("__")
            if key:
                config[section][key] = value
            else:
                config[section] = value
        return config.to_dict()

    return made


@pytest.fixture(scope="module")
def config(plain):
    return lambda **changes: parse(plain(**changes))


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    with jax.numpy_dtype_promotion("standard"):
        return run.run(config(), folder), folder


def test_a_killed_run_ends_with_the_same_bits(trained, config, tmp_path, monkeypatch):
    true_batches = Experiment.batches

    def killed(self, step):
        for number, batch in enumerate(true_batches(self, step), step):
            if number == 5:
                raise Killed
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(Experiment, "batches", killed)
        with pytest.raises(Killed):
            run.run(config(), tmp_path, audit=False)
    record, straight = run.run(config(), tmp_path, audit=False), trained[0]
    assert (record.status, record.steps) == ("completed", 8)
    assert record.metrics_last == straight.metrics_last
    assert (tmp_path / "adapter.safetensors").read_bytes() == (
        trained[1] / "adapter.safetensors"
    ).read_bytes()


def test_the_merged_weights_give_the_predictions_of_the_run(trained, config, folder, tmp_path):
    record, of_run = trained
    formats.Merged().write(open_run(of_run, record), tmp_path)
    weights = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert set(weights) == {"up/w", "kinds", "head"}
    found = np.load(folder / "validation.npz")
    x = found["x"] / 2
    logits = np.tanh(x @ weights["up/w"] + weights["kinds"][found["kind"]]) @ weights["head"]
    said = predictions.read(of_run)["validation"]
    np.testing.assert_allclose(said.outputs, logits, rtol=1e-4, atol=1e-5)
    right = 5 + logits.argmax(1) == found["labels"]
    assert record.metrics_last["accuracy"] == pytest.approx(right.mean())

    # They are the weights of another run, but for a head that its seed draws.
    again = {"model__weights": str(tmp_path), "model__fresh": ("head",)}
    made = [build(config(**again, seed=seed)) for seed in (0, 1)]
    for each in made:
        np.testing.assert_array_equal(each.frozen.base["kinds"], weights["kinds"])
        np.testing.assert_array_equal(each.frozen.base["up/w"], weights["up/w"])
        assert each.trainable["params"]["head"].shape == weights["head"].shape
    heads = [each.trainable["params"]["head"] for each in made]
    assert not np.array_equal(*heads)
    assert made[0].weights_digest == made[1].weights_digest != record.weights_digest


def test_dropout_of_the_model_acts_in_training_alone(config):
    first, second = build(config()), build(config(model__dropout=False))
    batch = next(first.batches(0))
    arguments = first.trainable, first.frozen, batch
    kept = first.predict(*arguments, None)
    dropped = first.predict(*arguments, jax.random.key(0))
    np.testing.assert_array_equal(second.predict(*arguments, jax.random.key(0)), kept)
    assert not np.allclose(kept, dropped)


def test_trials_of_a_sweep_are_checked_and_share_a_program(config):
    configs = [
        config(optimizer__learning_rate=rate, seed=seed) for rate in (0.1, 0.2) for seed in (0, 1)
    ]
    assert grouping.groups(configs) == [[0, 1, 2, 3]]
    assert preflight.check(configs[0], preflight.Once()).steps == 8


def test_arguments_and_narrow_parameters(config):
    given = config(model__arguments={"width": 4}, model__dtype="bfloat16", targets=("kinds",))
    made = load(given, read_texts(given), None)
    forward, params = made.model(jax.random.key(0))
    assert params["kinds"].shape == (2, 4) and params["kinds"].dtype == "bfloat16"
    assert forward(params, made.texts.example(3)).shape == (3, 2)


@pytest.mark.parametrize("model", images.ARGUMENTS["model"])
def test_the_models_of_the_config_take_images_with_and_without_channels(model):
    plain = images.get_config(f"model={model},weights=runs/weights,seed=3").to_dict()
    given = parse(plain)
    assert given.model.fresh == given.also_train == ("head(/.*)?",)
    for shape in ((28, 28), (14, 14, 3)):
        batch = {"images": np.zeros((2, *shape), np.uint8)}
        made = call(given.model, jax.random.key(0), {"images": batch["images"][:1]}, 5)
        assert jax.eval_shape(forward_of(made), made.params, batch).shape == (2, 5)


def test_runs_that_are_scored_on_training_examples(config, plain):
    assert held_out(config(data__validation=4)) and not held_out(config())
    alone = plain(data__validation=4)
    alone["data"]["files"]["validation"] = ""
    assert not held_out(parse(alone))


MISTAKES = {
    "own_models": "'own_models' is not the dotted name of a function, such as my_module.my_model",
    "no_module.tiny": "there is no module 'no_module'; is its folder in PYTHONPATH",
    "own_models.tyni": "'own_models' has no function 'tyni'",
    "own_models.NUMBER": "'own_models' has no function 'NUMBER'",
    "own_models.a_model": r"must return \(forward, params, read\), not dict",
    "own_models.parameters": r"must return \(forward, params, read\), not \(dict, function\)",
    "own_models.no_example": r"must take \(key, example, outputs\): too many positional arguments",
    "own_models.one_output": r"gives \(2, 1\) for a batch of x \(2, 6\) .*, expected \(2, 2\)",
    "own_models.of_six_rows": r"fails on a batch of x \(2, 6\) float32, kind \(2,\) int32: ",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_function_that_is_none_or_returns_something_else(config, name):
    given = config(model__name=name)
    assert name in refuses(MISTAKES[name], lambda: load(given, read_texts(given), None))


def test_weights_of_another_model(config, tmp_path):
    file = tmp_path / "model.safetensors"
    refuses("no such file", build, config(model__weights=str(file)))
    made = own_models.tiny(jax.random.key(0), {"x": np.zeros((1, 6))}, 5)[1]
    arrays = {"up/w": made["up"]["w"], "head": made["head"]}
    safetensors.numpy.save_file({name: np.asarray(x) for name, x in arrays.items()}, file)
    given = {"model__weights": str(file)}
    refuses(
        r"'head', \(8, 2\), has the shape \(8, 5\) there; --config.model.fresh",
        build,
        config(**given),
    )
    refuses("'kinds', .* lacks it", build, config(**given, model__fresh=("head",)))
    refuses("matches no parameter", build, config(**given, model__fresh=("haed",)))


def test_what_reads_texts_refuses(trained, config):
    refuses(
        "load_run is for models that read texts, .* own_models.tiny is your own",
        experiments.load_run,
        trained[1],
    )
    refuses("serving is for", require_published, config(), "serving")
    refuses("'tsv' belongs to classifiers", config, data__source="tsv")


def test_the_record_says_what_it_was(trained):
    record, folder = trained
    assert record.label_names == ["5", "6"]
    assert record.tokenised_per_second is None
    assert run_record.read(folder).weights_digest == record.weights_digest
    assert call(parse(record.config).model, jax.random.key(0), {"x": np.zeros((1, 6))}, 2).params
