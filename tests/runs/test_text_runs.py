"""Runs of text-to-text tasks: what is learned, scored and written down, alone and in sweeps."""

import json

import jax
import numpy as np
import pytest
import traced_batches
from small_language import write_places
from text_runs import config, followed, own_scores

import lora_jax as lj
from experiments.runs import generated_texts, predictions, run
from experiments.runs.finished_run import changed_data, open_run
from experiments.runs.run_options import RunOptions
from experiments.setup.experiment import build
from experiments.setup.load import read_texts
from experiments.studies import untrained
from lora_jax.models.published.load import load_decoder
from lora_jax.records import run_record

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_places(tmp_path_factory.mktemp("language"))


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
    assert record == run_record.read(folder)
    assert set(record.metrics_first) >= {"accuracy", "eval_loss"}
    assert record.metrics_first != record.metrics_last
    assert record.metrics_last["eval_loss"] < record.metrics_first["eval_loss"]


@pytest.mark.slow
def test_an_untrained_model_scores_what_a_run_scores_before_its_first_step(places, whole):
    """Also where the config's own method begins elsewhere."""
    for method in ("lora", "dora"):
        found = untrained.score(config(places, method, **WRITTEN))
        assert found.scores == pytest.approx(whole[0].metrics_first, rel=1e-5)
    assert found.data_digest == whole[0].data_digest
    assert found.weights_digest == whole[0].weights_digest


def test_a_run_of_no_epochs_scores_what_another_scores_before_its_first_step(
    places, whole, tmp_path
):
    record = run.run(config(places, **WRITTEN, train__epochs=0), tmp_path)
    assert (record.status, record.steps) == ("completed", 0)
    scores = {name: record.metrics_last[name] for name in whole[0].metrics_first}
    assert scores == pytest.approx(whole[0].metrics_first, rel=1e-5)
    assert run_record.read(tmp_path) == record


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
    some = experiment.texts.task.scored(5).validation
    texts = generated_texts.write(experiment, trainable, some.prompts)
    named = [
        next((i for i, o in enumerate(options) if o.split()[-1] in text), -1)
        for text, options in zip(texts, some.options, strict=True)
    ]
    assert record.metrics_last["accuracy_written"] == np.mean(named == some.answers)
    assert 0 <= record.metrics_last["rouge_l"] <= 100
    assert set(record.signatures) == {"rouge_l", "bleu"}
    assert "rouge_l" not in record.metrics_best  # the last state has written, not the best


def test_options_are_scored_by_products_of_rounded_operands(places):
    """Nearly as by exact ones."""
    rounded, exact = (
        build(config(places, generate__samples=0, **changes))
        for changes in ({"model__products": "bfloat16"}, {})
    )
    scores = own_scores(exact, exact.trainable, "validation")
    found = rounded.predictions(rounded.adapted_call(rounded.trainable), "validation")
    error = np.abs(found["validation"] - scores) / np.abs(scores)
    assert 1e-5 < error.max() < 0.05


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
    first, record = run.run_together(configs, folders, RunOptions("each"))
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


@pytest.mark.slow
def test_trials_that_draw_other_examples_learn_the_whole_of_their_completions(places, tmp_path):
    """Though the first of them drew shorter ones. A loss is a mean over the tokens that count."""
    file = tmp_path / "own.json"
    entries = [{"instruction": f"Say {n}.", "output": "go " * (n + 1)} for n in range(8)]
    file.write_text(json.dumps(entries))
    own = {"data__source": "alpaca", "data__files__train": str(file), "data__validation": 2}
    short = {"data__train": 2, "train__max_steps": 1, "generate__samples": 0, "seed": 3}
    drawn = [config(places, **own, **short, data__draw=draw) for draw in range(4)]
    drawn.sort(key=lambda each: read_texts(each).completion)
    configs, folders = [drawn[0], drawn[-1]], [tmp_path / "first", tmp_path / "last"]
    assert read_texts(configs[0]).completion < read_texts(configs[1]).completion
    run.run_together(configs, folders, RunOptions("each", audit=False))
    run.run(configs[1], tmp_path / "alone", audit=False)
    losses = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        for folder in (folders[1], tmp_path / "alone")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_run_that_goes_on_keeps_the_scores_before_it_began(places, whole, tmp_path):
    settings = config(places, **WRITTEN, train__checkpoint_every=1)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.runs.artifacts.save", stop)
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


def test_instructions_that_changed_after_a_run_are_noticed(places, tmp_path):
    """The record has the digest of prompts in the form of the chat template."""
    file, folder = tmp_path / "own.json", tmp_path / "run"
    entries = [{"instruction": f"Say {n}.", "output": str(n)} for n in range(8)]
    file.write_text(json.dumps(entries))
    own = {"data__source": "alpaca", "data__template": "chat", "data__validation": 2}
    settings = config(places, **own, data__files__train=str(file), generate__samples=0)
    record = run.run(settings, folder, audit=False)
    assert not changed_data(settings, record)
    open_run(folder, record)  # warns of nothing, as warnings are errors here
    file.write_text(json.dumps([*entries, {"instruction": "Say more.", "output": "more"}]))
    assert changed_data(settings, record)
    with pytest.warns(UserWarning, match="are not those of its files now"):
        open_run(folder, record)
    file.unlink()  # which a run that has ended does not need
    assert not changed_data(settings, record)
