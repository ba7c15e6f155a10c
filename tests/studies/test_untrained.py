"""Untrained models: scored once, before a study trains, and checked when they are read."""

import itertools

import jax
import numpy as np
import pytest
import small_model
import tune_command

from experiments.analysis import task_evidence
from experiments.runs import predictions
from experiments.studies import registration
from experiments.sweeps import jobs
from lora_jax import data
from lora_jax.models.published.load import load_classifier
from lora_jax.records import seal

STUDY = """
from configs import common, own_data

STUDY = {
    "rows": ("full",),
    "columns": ("pairs", "classes"),
    "reference": "full",
    "rates": {"per_decade": 2, "around": 0, "most_more": 0},
    "tuning": {"held_out": 4, "seeds": (100,)},
    "seeds": (1, 2),
    "margin": 1.0,
}


def get_config(arg=None):
    choice = common.parse_arg(arg, files="", model="", row="full", task="")
    files = choice["files"] + "/" + choice["task"]
    given = f"train={files}.csv,validation={files}.csv,variant={choice['row']},examples=6,"
    given += "size=smoke,name=" + choice["task"]
    pair = ",second_text=other" if choice["task"] == "pairs" else ""
    config = own_data.get_config(given + pair)
    config.update({"model": {"name": choice["model"]}, "data": {"buckets": 2}})
    config.update({"study": {"table": "mine", "row": choice["row"], "column": choice["task"]}})
    return config
"""
WORDS = ("a red house", "the house is red", "rain", "it has been raining for many long days")
PAIRS = [(*pair, number / 4) for number, pair in enumerate(itertools.product(WORDS, WORDS), 1)]


class Began(Exception):
    """A run would have been trained."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of the study's file, its data and its model."""
    folder = tmp_path_factory.mktemp("place")
    small_model.write(folder / "model")
    (folder / "mine.py").write_text(STUDY)
    rows = [f"{first},{second},{score}" for first, second, score in PAIRS]
    (folder / "pairs.csv").write_text("\n".join(["text,other,label", *rows]))
    rows = [f"{first} {second},{'high' if y > 2 else 'low'}" for first, second, y in PAIRS]
    (folder / "classes.csv").write_text("\n".join(["text,label", *rows]))
    return folder


@pytest.fixture
def give(place, tmp_path, monkeypatch):
    """Give the command for the study in `tmp_path`; it trains nothing, but raises `Began`."""

    def train(configs, folders, names, how):
        assert how.execution == "each"  # as it is asked for, and not by timing
        assert set(task_evidence.read_untrained(tmp_path)) == {"pairs", "classes"}
        raise Began

    monkeypatch.setattr(jobs, "train", train)
    argument = f"files={place},model={place / 'model'}"
    return lambda **flags: tune_command.give(
        monkeypatch, str(place / "mine.py"), tmp_path, argument, execution="each", **flags
    )


def by_hand(folder, text):
    """The direction of one text's mean last hidden state, without padding."""
    model, _ = load_classifier(folder, num_labels=1, pool="mean", key=jax.random.key(0))
    ids = np.array([data.load_tokenizer(folder).backend.encode(text).ids])
    mean = np.asarray(model.encode(ids, np.ones_like(ids)))[0].mean(axis=0, dtype=np.float64)
    return mean / np.linalg.norm(mean)


@pytest.mark.usefixtures("standard_promotion")
def test_it_is_scored_once_and_before_anything_trains(give, place, tmp_path, capsys):
    give(untrained=True)
    assert "pairs, untrained: pearson" in capsys.readouterr().out
    assert registration.read(tmp_path) is not None
    files = [
        tmp_path / name for name in (task_evidence.UNTRAINED_FILE, task_evidence.UNTRAINED_OUTPUTS)
    ]
    before = [path.read_bytes() for path in files]
    with pytest.raises(Began):
        give()
    assert [path.read_bytes() for path in files] == before
    found = task_evidence.read_untrained(tmp_path)
    assert found["classes"].score is found["classes"].predictions is None
    assert found["classes"].how == "a head that has not been trained gives no score"

    directions = {text: by_hand(place / "model", text) for text in WORDS}
    cosines = [directions[first] @ directions[second] for first, second, _ in PAIRS]
    outputs, labels = found["pairs"].predictions
    # The cosines are 0.99994 to 1. Rounding a mean to float32 turns it by about 1e-6, which moves
    # the cosine of two directions that are at most 0.0113 apart by up to 2 * 0.0113 * 1e-6.
    np.testing.assert_allclose(outputs[:, 0], cosines, rtol=0, atol=2.3e-8)
    assert labels.tolist() == [score for *_, score in PAIRS]
    written = seal.read(files[0])["tasks"]["pairs"]
    digests = found["pairs"].data_digest, found["pairs"].weights_digest
    assert digests == (written["data_digest"], written["weights_digest"]) and all(digests)
    assert found["pairs"].score == pytest.approx(np.corrcoef(outputs[:, 0], labels)[0, 1])


@pytest.mark.usefixtures("standard_promotion")
def test_a_change_of_the_files_is_noticed(give, tmp_path):
    assert task_evidence.read_untrained(tmp_path) == {}
    with pytest.raises(Began):
        give()
    path, kept = (
        tmp_path / task_evidence.UNTRAINED_FILE,
        task_evidence.read_untrained(tmp_path)["pairs"],
    )
    sound, content = path.read_text(), seal.read(path)

    def refused(said):
        with pytest.raises(ValueError, match=said):
            task_evidence.read_untrained(tmp_path)

    path.write_text(sound.replace(f'"pearson": {kept.score}', '"pearson": 0.99'))
    refused("changed after it was written")
    seal.write(path, content | {"registration": "another"})
    refused(r"belongs to another study\.json")
    path.write_text(sound)
    shuffled = kept.predictions._replace(outputs=kept.predictions.outputs[::-1])
    predictions.write(tmp_path, {"pairs/validation": shuffled}, task_evidence.UNTRAINED_OUTPUTS)
    refused("pairs's predictions give pearson")
    (tmp_path / task_evidence.UNTRAINED_OUTPUTS).write_bytes(b"cut")
    refused("cannot be read .*--untrained")
