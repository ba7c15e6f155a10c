"""Runs of text-to-text tasks: what is learned, scored and written down, alone and in sweeps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import traced_batches
from small_language import write_places

import lora_jax as lj
from configs import instruct
from experiments import predictions, run, together, writing
from experiments.build import build
from lora_jax import data, records
from lora_jax.data import encode_options
from lora_jax.models.pretrained_decoder import load_decoder

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_places(tmp_path_factory.mktemp("language"))


def config(places, method="lora", **changes):
    """An instruct config of the small model; `a__b` stands for the setting a.b."""
    arg = f"method={method},source=commonsense,folder={places / 'sets'},task=openbookqa,train=0"
    made = instruct.get_config(arg)
    small = {"variant.rank": 4}  # heads share keys of 8 numbers
    small |= {"targets": ("query/kernel", "down/kernel")}  # which take less to compile
    small = {} if method == "full" else small
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

    @jax.jit
    def of_rows(params, ids, learned):
        return (followed(forward(params, ids)[:, :-1], ids[:, 1:]) * learned[:, 1:]).sum(axis=1)

    found = of_rows(params, batch["input_ids"], batch["token_type_ids"])
    return data.option_outputs(np.asarray(found), offsets)


def followed(logits, ids):
    """The log-probabilities of tokens."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]


WRITTEN = {"generate__scored": 5, "generate__metrics": ("rouge_l", "bleu", "accuracy_written")}


@pytest.fixture(scope="module")
def whole(places, tmp_path_factory):
    """A finished run: its record and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    with jax.numpy_dtype_promotion("standard"):
        return run.run(config(places, **WRITTEN), folder), folder


def assert_kept_outputs_are_those_of_the_saved_adapter(record, folder, experiment):
    """By logits of rows of their own."""
    trainable, _, _ = lj.load_adapter(folder, experiment.trainable, experiment.frozen)
    for name, kept in predictions.read(folder).items():
        expected = own_scores(experiment, trainable, name)
        np.testing.assert_allclose(kept.outputs, expected, rtol=2e-4, atol=2e-4)
        right = expected.argmax(axis=1) == kept.labels
        end = "" if name == "validation" else f"_{name}"
        assert record.metrics_last[f"accuracy{end}"] == pytest.approx(right.mean())
    return trainable


def assert_learned(record, folder):
    assert record.status == "completed"
    assert record == records.read(folder)
    assert set(record.metrics_first) >= {"accuracy", "eval_loss"}
    assert record.metrics_first != record.metrics_last
    assert record.metrics_last["eval_loss"] < record.metrics_first["eval_loss"]


def test_what_is_traced_before_a_sweep_is_what_a_run_computes_with(places):
    traced_batches.assert_are_those_of_the_run(config(places, data__buckets=2))


@pytest.mark.slow
def test_a_run_on_quantised_weights_records_scores_before_and_after(places, tmp_path):
    settings = config(places, "qlora", generate__samples=0)
    record = run.run(settings, tmp_path)
    assert_learned(record, tmp_path)
    assert_kept_outputs_are_those_of_the_saved_adapter(record, tmp_path, build(settings))


def test_a_run_records_samples_and_scores_what_is_written_as_asked(places, whole):
    record, folder = whole
    assert_learned(record, folder)
    assert [set(each) for each in record.samples] == [{"prompt", "expected", "before", "after"}] * 2
    assert all(each["prompt"].endswith("<assistant>") for each in record.samples)
    assert all("Below is an instruction" not in each["prompt"] for each in record.samples)

    experiment = build(config(places, **WRITTEN))
    trainable = assert_kept_outputs_are_those_of_the_saved_adapter(record, folder, experiment)
    some = experiment.task.scored(5).validation
    texts = writing.write(experiment, trainable, some.prompts)
    named = [
        next((i for i, o in enumerate(options) if o.split()[-1] in text), -1)
        for text, options in zip(texts, some.options, strict=True)
    ]
    assert record.metrics_last["accuracy_written"] == np.mean(named == some.answers)
    assert 0 <= record.metrics_last["rouge_l"] <= 100
    assert set(record.signatures) == {"rouge_l", "bleu"}


def test_the_loss_of_a_step_is_the_mean_over_the_tokens_of_completions_in_parts_too(places):
    """Rows have different numbers of tokens: a mean of means would be another."""
    forward, params = lj.from_nnx(load_decoder(str(places / "model")))
    found = []
    for accumulate in (1, 4):
        experiment = build(config(places, train__accumulate=accumulate))
        batch = next(experiment.batches(0))
        step = experiment.make_step()
        state, values = step(experiment.start(), experiment.frozen, batch)
        assert int(state.step) == 1
        found.append((float(values["loss"]), float(values["grad_norm"])))
    np.testing.assert_allclose(found[0], found[1], rtol=2e-5)

    ids = batch["input_ids"]
    after = jax.jit(lambda *given: followed(forward(*given)[:, :-1], ids[:, 1:]))(params, ids)
    learned = batch["token_type_ids"][:, 1:] * (batch["weight"] > 0)[:, None]
    expected = -(after * learned).sum() / learned.sum()
    np.testing.assert_allclose(found[0][0], expected, rtol=1e-5)


@pytest.mark.slow
def test_a_trial_of_one_program_is_the_one_alone(places, whole, tmp_path):
    alone, alone_folder = whole
    other = config(places, **WRITTEN, optimizer__learning_rate=3e-3, seed=1)
    folders = [tmp_path / str(number) for number in range(2)]
    configs = [other, config(places, **WRITTEN)]
    first, record = together.run_together(configs, folders, execution="each")
    assert record.metrics_first == pytest.approx(alone.metrics_first, rel=1e-5)
    assert record.metrics_last == pytest.approx(alone.metrics_last, rel=1e-3)
    losses = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        for folder in (alone_folder, *reversed(folders))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    before = [[each["before"] for each in one.samples] for one in (alone, record)]
    assert before[0] == before[1]
    # and the other one has a seed and a rate of its own
    assert losses[2] != pytest.approx(losses[1], rel=1e-5)
    assert first.metrics_last["eval_loss"] != pytest.approx(
        record.metrics_last["eval_loss"], rel=1e-3
    )


def test_a_run_that_goes_on_keeps_the_scores_before_it_began(places, whole, tmp_path):
    settings = config(places, **WRITTEN, train__checkpoint_every=1)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.finish.save", stop)
        with pytest.raises(KeyboardInterrupt):
            run.run(settings, tmp_path)
    record = run.run(settings, tmp_path)
    assert record.metrics_first == whole[0].metrics_first
    assert record.metrics_last == whole[0].metrics_last


def test_a_misspelt_metric_of_texts_ends_before_training(places):
    with pytest.raises(ValueError, match="unknown metric 'blue' of texts; nearest: 'bleu'"):
        build(config(places, generate__scored=2, generate__metrics=("blue",)))
    with pytest.raises(ValueError, match=r"config.data.template 'caht': expected plain or chat"):
        build(config(places, data__template="caht"))
    with pytest.raises(ValueError, match=r"unknown model.remat 'layer'; nearest: 'layers'"):
        build(config(places, model__remat="layer"))
