"""Values that no model and no file has: they are read or refused in a line."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from make_fixtures import bert, deberta, decoders

from configs.settings import DataSettings, TextSettings
from experiments.setup import from_config
from experiments.setup.task_and_model import check_vocabulary
from lora_jax import data
from lora_jax.models import families
from lora_jax.models.parts.config_checks import MOST_LAYERS
from lora_jax.models.parts.rope import frequencies
from lora_jax.models.published import weight_files

PUBLISHED = {
    "bert": bert.CASES["bert"][0],
    "roberta": bert.CASES["roberta"][0],
    "deberta-v2": deberta.CASES["v3"][0],
    **{name: decoders.CASES[name] for name in ("llama", "mistral", "qwen2", "qwen3", "gpt2")},
}
EPSILON = {"gpt2": "layer_norm_epsilon", "bert": "layer_norm_eps", "roberta": "layer_norm_eps"}
EPSILON["deberta-v2"] = "layer_norm_eps"

SCALING = ("factor", "rope_theta", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor")
NUMBERS = st.one_of(
    st.integers(-2, 70), st.sampled_from([2**31 - 1, 2**31, 10**9, 2**64, 10**400, -(10**400)])
)
FLOATS = st.sampled_from([math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-300, 1e300, 0.5, 2.5])
PLAIN = st.one_of(NUMBERS, FLOATS, st.booleans(), st.none(), st.text(max_size=4))
AS_PUBLISHED = object()
VALUES = st.one_of(
    st.just(AS_PUBLISHED),
    PLAIN,
    st.lists(PLAIN, max_size=3),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["linear", "dynamic", "llama3", "yarn", "su"])},
        optional=dict.fromkeys(SCALING, PLAIN),
    ),
)


def read(kind, content):
    return families.find(kind).config.from_json(content)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_drawn_configs_are_read_or_refused_in_a_line(kind):
    """Whatever stands in a config.json, and as JSON: Infinity, NaN and huge integers are."""
    names = st.sampled_from([*PUBLISHED[kind], "rope_scaling", "layer_types", "classifier_dropout"])
    seen = {"read": 0, "refused": 0}

    @settings(max_examples=100)
    @given(st.dictionaries(names.filter(lambda name: name != "model_type"), VALUES, max_size=2))
    def check(changes):
        changes = {name: value for name, value in changes.items() if value is not AS_PUBLISHED}
        content = json.loads(json.dumps({**PUBLISHED[kind], **changes}))
        try:
            config = read(kind, content)
        except ValueError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 400
            seen["refused"] += 1
            return
        seen["read"] += 1
        assert config.num_hidden_layers <= MOST_LAYERS
        epsilon = getattr(config, EPSILON.get(kind, "rms_norm_eps"))
        assert np.float32(0) < np.float32(epsilon) <= 0.1
        assert config.max_tokens > 0
        assert hash(config) == hash(read(kind, content))  # none of its values is a list
        assert 0 <= (config.pad_token_id or 0) < config.vocab_size or "pad_token_id" not in content
        if hasattr(config, "rope"):
            turns, factor = frequencies(config.rope, 8)
            assert np.isfinite(np.float32(turns)).all()
            assert math.isfinite(factor)
        sizes = [value for value in vars(config).values() if isinstance(value, int)]
        assert max(sizes) < 2**31

    check()
    assert min(seen.values()) > 5


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("epsilon", [math.inf, 1e300, 2.0, 1e-45, 1e-300, 10**400])
def test_epsilons_that_are_none(kind, epsilon):
    name = EPSILON.get(kind, "rms_norm_eps")
    with pytest.raises(ValueError, match=f"^{name} must be "):
        read(kind, {**PUBLISHED[kind], name: epsilon})
    for good in (1e-12, 1e-7, 1e-5, 1e-3):
        assert getattr(read(kind, {**PUBLISHED[kind], name: good}), name) == good


@pytest.mark.parametrize("kind", PUBLISHED)
def test_ids_beyond_the_vocabulary(kind):
    room = {} if kind == "gpt2" else {"max_position_embeddings": 64}
    content = {**PUBLISHED[kind], **room, "vocab_size": 40}
    assert read(kind, {**content, "pad_token_id": 39}).pad_token_id == 39
    with pytest.raises(
        ValueError, match="pad_token_id 40 is not in the vocabulary, whose vocab_size is"
    ):
        read(kind, {**content, "pad_token_id": 40})
    if families.is_decoder(kind):
        with pytest.raises(ValueError, match=r"pad_token_id must be an integer >= 0, got \[3\]"):
            read(kind, {**content, "pad_token_id": [3]})
        with pytest.raises(ValueError, match="eos_token_id 41 is not in the vocabulary"):
            read(kind, {**content, "eos_token_id": [3, 41]})


@pytest.mark.parametrize("theta", [1, 0.5, 1e-30])
def test_a_base_of_frequencies_that_is_none(theta):
    yarn = {"type": "yarn", "factor": 4.0}
    with pytest.raises(ValueError, match="rope_theta must be above 1, got "):
        read("llama", {**PUBLISHED["llama"], "rope_theta": theta, "rope_scaling": yarn})
    large = read("llama", {**PUBLISHED["llama"], "rope_theta": 10**20, "rope_scaling": yarn})
    assert frequencies(large.rope, 8)[0].dtype == np.float64


def test_a_roberta_of_no_positions():
    content = {**PUBLISHED["roberta"], "max_position_embeddings": 2, "pad_token_id": 1}
    with pytest.raises(ValueError, match="leaves a roberta no position after pad_token_id 1"):
        read("roberta", content)


def encoded(ids, types, pad_id=0):
    arrays = [np.array(each, np.int32) for each in (ids, types)]
    offsets = np.array([0, len(ids)], np.int64)
    return data.Encoded(*arrays, offsets, np.zeros(0), pad_id, 0)


@pytest.mark.parametrize(
    ("ids", "types", "pad_id", "said"),
    [
        ([1, 9], [0, 1], 0, None),
        ([1, 10], [0, 1], 0, "gives id 10, the model's vocabulary has 10"),
        ([1, -1], [0, 1], 0, "gives id -1, the model's vocabulary has 10"),
        ([1, 9], [0, 2], 0, "gives type 2, the model's table of token types has 2"),
        ([1, 9], [0, -1], 0, "gives type -1, the model's table of token types has 2"),
        ([1, 9], [0, 1], 10, "pads with id 10, the model's vocabulary has 10"),
    ],
)
def test_what_a_tokenizer_gives_is_in_the_models_tables(ids, types, pad_id, said):
    parts = {"train": encoded([0], [0]), "validation": encoded(ids, types, pad_id)}
    if said is None:
        check_vocabulary(parts, 10, "folder", 2)
        return
    with pytest.raises(ValueError, match=f"^the tokenizer in folder {said}$"):
        check_vocabulary(parts, 10, "folder", 2)


def test_more_json_than_any_model_has(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    monkeypatch.setattr(weight_files, "_MOST_JSON", 8)
    assert weight_files.read_json(path) == {"a": 1}
    monkeypatch.setattr(weight_files, "_MOST_JSON", 7)
    with pytest.raises(ValueError, match="8 bytes of JSON; at most 7 are read"):
        weight_files.read_json(path)


def own_texts(folder, **sizes):
    rows = [f"film {i},neg\nfilm {i + 10 if i < 8 else 'same'},pos\n" for i in range(10)]
    (folder / "a.csv").write_text("text,label\n" + "".join(rows))
    files = {"train": "a.csv", "text": "text", "label": "label"}
    return DataSettings(name="own", source="files", folder=str(folder), files=files, **sizes)


def instructions(folder, **sizes):
    entries = [{"instruction": f"Say {i}.", "output": str(i)} for i in range(20)]
    (folder / "a.json").write_text(json.dumps(entries))
    files = {"train": "a.json"}
    return TextSettings(name="mine", source="alpaca", folder=str(folder), files=files, **sizes)


@pytest.mark.parametrize(
    ("made", "sizes", "said"),
    [
        (
            own_texts,
            {"validation": 4, "train": 17},
            "config.data.train 17: task 'own': cannot draw 17 of 16 examples of 'own/train'; "
            "0 takes all",
        ),
        (
            own_texts,
            {"validation": 30},
            "config.data.validation 30: data set 'own/train': cannot hold out 30 of 20 examples",
        ),
        (
            own_texts,
            {"validation": 18},
            "config.data.validation 18: data set 'own/train': class 'pos' has 8 examples without "
            "a duplicate, but 9 are to be drawn",
        ),
        (
            instructions,
            {"validation": 2, "train": 400},
            "config.data.train 400: task 'mine': cannot draw 400 of 18 different examples of "
            "'mine/train'; 0 takes all",
        ),
        (
            instructions,
            {"validation": 21},
            "config.data.validation 21: task 'mine': cannot draw 21 of 20 different examples of "
            "'mine/train'",
        ),
    ],
)
def test_too_few_examples_name_the_setting_that_asks_for_more(tmp_path, made, sizes, said):
    section = made(tmp_path, **sizes)
    make = from_config.make_task if made is own_texts else from_config.make_text_task
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        make(section)
