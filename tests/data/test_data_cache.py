"""Token ids from the cache are those that tokenising gives, whatever happens to the file."""

import dataclasses
import os

import numpy as np
import pytest
import tokenizers
from same_tokens import same
from tokenizers import models, pre_tokenizers

from lora_jax.data import Examples, Tokenizer, cache_folder, encode, encode_cached


def make(words="a b c d e f", pad_id=0):
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words.split()])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend, pad_id)


EXAMPLES = Examples("toy", ["a b c", "d e", "f a b c d e"], np.array([0, 1, 0]))


def test_the_second_time_comes_from_the_file(tmp_path):
    first = encode_cached(make(), EXAMPLES, 5, tmp_path)
    again = encode_cached(make(), EXAMPLES, 5, tmp_path)
    assert (first.from_cache, again.from_cache) == (False, True)
    assert first.encoded.truncated == 1
    for found in (first, again):
        same(found.encoded, encode(make(), EXAMPLES, 5))
    assert first.examples_per_second > 0
    assert again.examples_per_second == first.examples_per_second
    assert len(os.listdir(tmp_path)) == 1


def test_labels_are_those_of_the_examples_and_not_of_the_file(tmp_path):
    encode_cached(make(), EXAMPLES, 5, tmp_path)
    other = dataclasses.replace(EXAMPLES, labels=np.array([0.5, 1.5, 2.5]))
    found = encode_cached(make(), other, 5, tmp_path)
    assert found.from_cache
    same(found.encoded, encode(make(), other, 5))
    bare = encode_cached(make(), dataclasses.replace(EXAMPLES, labels=None), 5, tmp_path)
    assert bare.from_cache
    assert len(bare.encoded.labels) == 0


def test_anything_else_is_tokenised_anew(tmp_path):
    encode_cached(make(), EXAMPLES, 5, tmp_path)
    for tokenizer, examples, length in (
        (make(), EXAMPLES, 4),
        (make("b a c d e f"), EXAMPLES, 5),
        (make(pad_id=1), EXAMPLES, 5),
        (make(), EXAMPLES.take([1, 0, 2]), 5),
        (make(), dataclasses.replace(EXAMPLES, second_texts=["a", "b", "c"]), 5),
    ):
        found = encode_cached(tokenizer, examples, length, tmp_path)
        assert not found.from_cache
        same(found.encoded, encode(tokenizer, examples, length))


def test_a_damaged_file_is_made_anew(tmp_path):
    expected = encode_cached(make(), EXAMPLES, 5, tmp_path).encoded
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(0, len(whole), 37)]
    for place in range(0, len(whole), 3):
        damaged.append(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        found = encode_cached(make(), EXAMPLES, 5, tmp_path)
        same(found.encoded, expected)
        assert not found.from_cache
    assert encode_cached(make(), EXAMPLES, 5, tmp_path).from_cache


def test_none_keeps_nothing_and_the_default_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lora_jax"
    same(encode_cached(make(), EXAMPLES, 5, None).encoded, encode(make(), EXAMPLES, 5))
    assert list(tmp_path.iterdir()) == []
    encode_cached(make(), EXAMPLES, 5)
    assert len(list((tmp_path / "lora_jax" / "tokens").iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lora_jax"


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot keep token ids in"):
        found = encode_cached(make(), EXAMPLES, 5, tmp_path / "file")
    same(found.encoded, encode(make(), EXAMPLES, 5))
