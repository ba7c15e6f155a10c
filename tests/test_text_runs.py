"""Runs of text-to-text tasks: what is learned, scored and written down, alone and in sweeps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_language import write_places

import lora_jax as lj
from configs import instruct
from experiments import predictions, run, together, writing
from experiments.build import build
from lora_jax import data, records
from lora_jax.data import encode_options
from lora_jax.models.pretrained_decoder import load_decoder

pytestmark = pytest.mark.usefixtures("standard_promotion", "quick_compilation")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_places(tmp_path_factory.mktemp("language"))


def config(places, method="lora", **changes):
    """An instruct config of the small model; `a__b` stands for the setting a.b."""
    arg = f"method={method},source=commonsense,folder={places / 'sets'},task=openbookqa,train=0"
    made = instruct.get_config(arg)
    small = {} if method == "full" else {"variant.rank": 4}  # heads share keys of 8 numbers
    made.update_from_flattened_dict(
        {
            **small,
            "model.name": str(places / "model"),
            "data.scored": 0,
            "data.buckets": 1,
            "train.max_steps": 4,
            "train.log_every": 1,
            "optimizer.learning_rate": 1e-2,
            "generate.samples": 2,
            "generate.max_new_tokens": 6,
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
    )
    return made.to_dict()


def own_scores(experiment, trainable, name, limit=256):
    """The log-likelihoods of a part's options, each from the whole logits of a row of its own."""
    params = experiment.adapted.merge(trainable, experiment.frozen)
    forward, _ = lj.from_nnx(load_decoder(experiment.config["model"]["name"]))
    parts = {"validation": experiment.task.validation, **experiment.task.extra}
    rows, offsets = encode_options(experiment.tokenizer, parts[name], limit)
    longest = int(rows.lengths.max())
    batch = data.collate(rows, np.arange(len(rows)), longest, len(rows))
    logs = jax.nn.log_softmax(jax.jit(forward)(params, jnp.asarray(batch["input_ids"])))
    after = jnp.take_along_axis(logs[:, :-1], batch["input_ids"][:, 1:, None], axis=-1)[..., 0]
    of_rows = np.asarray((after * batch["token_type_ids"][:, 1:]).sum(axis=1))
    return data.option_outputs(of_rows, offsets)


@pytest.mark.parametrize("method", ("lora", "full", "qlora"))
def test_a_run_records_scores_before_and_after_and_samples(method, places, tmp_path):
    record = run.run(config(places, method), tmp_path)
    assert record.status == "completed"
    assert record == records.read(tmp_path)
    assert set(record.metrics_first) >= {"accuracy", "eval_loss"}
    assert record.metrics_first != record.metrics_last
    assert record.metrics_last["eval_loss"] < record.metrics_first["eval_loss"]
    assert [set(each) for each in record.samples] == [{"prompt", "expected", "before", "after"}] * 2
    assert all(each["prompt"].endswith("<assistant>") for each in record.samples)
    assert all("Below is an instruction" not in each["prompt"] for each in record.samples)

    # The adapter that is saved makes the outputs that are kept, by logits of rows of their own.
    experiment = build(config(places, method))
    trainable, _, _ = lj.load_adapter(tmp_path, experiment.trainable, experiment.frozen)
    for name, kept in predictions.read(tmp_path).items():
        expected = own_scores(experiment, trainable, name)
        np.testing.assert_allclose(kept.outputs, expected, rtol=2e-4, atol=2e-4)
        right = expected.argmax(axis=1) == kept.labels
        end = "" if name == "validation" else f"_{name}"
        assert record.metrics_last[f"accuracy{end}"] == pytest.approx(right.mean())


def test_the_loss_of_a_step_is_the_mean_over_the_tokens_of_completions(places):
    experiment = build(config(places))
    batch = next(experiment.batches(0))
    forward, params = lj.from_nnx(load_decoder(str(places / "model")))
    logs = jax.nn.log_softmax(jax.jit(forward)(params, jnp.asarray(batch["input_ids"])))[:, :-1]
    after = jnp.take_along_axis(logs, batch["input_ids"][:, 1:, None], axis=-1)[..., 0]
    learned = batch["token_type_ids"][:, 1:] * (batch["weight"] > 0)[:, None]
    state, values = experiment.make_step()(experiment.start(), experiment.frozen, batch)
    expected = -(after * learned).sum() / learned.sum()
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-5)
    assert int(state.step) == 1


@pytest.mark.parametrize("parts", (4,))
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts, places):
    """Rows have different numbers of tokens: a mean of means would be another."""
    found = []
    for accumulate in (1, parts):
        experiment = build(config(places, train__accumulate=accumulate))
        step = experiment.make_step()
        _, values = step(experiment.start(), experiment.frozen, next(experiment.batches(0)))
        found.append((float(values["loss"]), float(values["grad_norm"])))
    np.testing.assert_allclose(found[0], found[1], rtol=2e-5)


def test_trials_of_one_program_are_those_alone(places, tmp_path):
    configs = [
        config(places, optimizer__learning_rate=rate, seed=seed)
        for seed, rate in enumerate((1e-3, 3e-3))
    ]
    folders = [tmp_path / str(number) for number in range(2)]
    ended = together.run_together(configs, folders, execution="each")
    for number, record in enumerate(ended):
        alone = run.run(configs[number], tmp_path / f"alone{number}")
        assert record.metrics_first == pytest.approx(alone.metrics_first, rel=1e-5)
        assert record.metrics_last == pytest.approx(alone.metrics_last, rel=1e-3)
        first = [
            json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]
            for folder in (folders[number], tmp_path / f"alone{number}")
        ]
        assert first[0] == pytest.approx(first[1], rel=1e-5)
        assert [each["before"] for each in record.samples] == [
            each["before"] for each in alone.samples
        ]


def test_what_is_written_is_scored_by_the_metrics_asked_for(places, tmp_path):
    asked = {"generate__scored": 5, "generate__metrics": ("rouge_l", "bleu", "accuracy_written")}
    settings = config(places, **asked)
    record = run.run(settings, tmp_path)
    experiment = build(settings)
    trainable, _, _ = lj.load_adapter(tmp_path, experiment.trainable, experiment.frozen)
    some = experiment.task.scored(5).validation
    texts = writing.write(experiment, trainable, some.prompts)
    named = [
        next((i for i, o in enumerate(options) if o.split()[-1] in text), -1)
        for text, options in zip(texts, some.options, strict=True)
    ]
    assert record.metrics_last["accuracy_written"] == np.mean(named == some.answers)
    assert 0 <= record.metrics_last["rouge_l"] <= 100
    assert set(record.signatures) == {"rouge_l", "bleu"}


def test_a_run_that_goes_on_keeps_the_scores_before_it_began(places, tmp_path):
    whole = run.run(config(places), tmp_path / "whole")
    stopped = tmp_path / "stopped"
    settings = config(places, train__checkpoint_every=1)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.finish.save", stop)
        with pytest.raises(KeyboardInterrupt):
            run.run(settings, stopped)
    record = run.run(settings, stopped)
    assert record.metrics_first == whole.metrics_first
    assert record.metrics_last == whole.metrics_last


def test_a_misspelt_metric_of_texts_ends_before_training(places):
    with pytest.raises(ValueError, match="unknown metric 'blue' of texts; nearest: 'bleu'"):
        build(config(places, generate__scored=2, generate__metrics=("blue",)))
    with pytest.raises(ValueError, match=r"config.data.template 'caht': expected plain or chat"):
        build(config(places, data__template="caht"))
    with pytest.raises(ValueError, match=r"unknown model.remat 'layer'; nearest: 'layers'"):
        build(config(places, model__remat="layer"))
