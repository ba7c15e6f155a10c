"""Tokenizers from vocabulary files beside transformers' and SentencePiece's, on random texts."""

import json
import random
import shutil

import numpy as np
import pytest

from lora_jax.data import Examples, encode, load_tokenizer
from lora_jax.models.published.location import locate

transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")
from make_fixtures.tokenizer_files import (  # noqa: E402
    DEBERTA_SETTINGS,
    FIXTURES,
    ROBERTA_SETTINGS,
    corpus,
    deberta_reference,
    roberta_reference,
)

pytestmark = pytest.mark.parity

ASCII = [(0x20, 0x7E)] * 8
ANY = [*ASCII, (0xA0, 0x24F), (0x400, 0x4FF), (0x3040, 0x30FF), (0x4E00, 0x4FFF)]
ANY += [(0x1F300, 0x1F6FF), (0x9, 0xD), (0x2000, 0x206F), (0xFB00, 0xFB06), (0xFF01, 0xFF5E)]


def texts(ranges, seed, count=300):
    """Random characters between words that the vocabularies know."""
    rng = random.Random(seed)
    words = " ".join(corpus()).split()

    def one():
        if rng.random() < 0.5:
            return rng.choice(words) + rng.choice(["", " ", "  "])
        return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 6)))

    return ["".join(one() for _ in range(rng.randint(0, 12))) for _ in range(count)]


def ids(tokenizer, firsts, seconds=None, max_length=512):
    examples = Examples("toy", tuple(firsts), np.arange(len(firsts)), second_texts=seconds)
    encoded = encode(tokenizer, examples, max_length)
    spans = zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)
    return [(encoded.ids[a:b].tolist(), encoded.type_ids[a:b].tolist()) for a, b in spans]


@pytest.mark.parametrize("max_length", [8, 40, 512])
def test_random_texts_as_berts_tokenizer_in_transformers(max_length):
    folder = locate("minilm")
    reference = transformers.AutoTokenizer.from_pretrained(str(folder))
    tokenizer = load_tokenizer(folder)
    rng = random.Random(max_length)
    ranges = [(0x20, 0x7E)] * 8 + [(0xA0, 0x24F), (0x400, 0x4FF), (0x3040, 0x30FF)]
    ranges += [(0x4E00, 0x4FFF), (0x1F300, 0x1F6FF), (0x0, 0x1F), (0x2000, 0x206F)]

    def text():
        return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 80)))

    firsts, seconds = [text() for _ in range(200)], [text() for _ in range(200)]
    settings = {"max_length": max_length, "truncation": "longest_first", "padding": False}
    for second in (None, seconds):
        expected = reference(firsts, second, **settings)
        both = zip(expected["input_ids"], expected["token_type_ids"], strict=True)
        assert ids(tokenizer, firsts, second, max_length) == list(both)


def folder_of(kind, settings, tmp_path):
    folder = shutil.copytree(FIXTURES / f"{kind}_tokenizer", tmp_path / kind)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("roberta", settings) for settings in ROBERTA_SETTINGS]
    + [("deberta", settings) for settings in DEBERTA_SETTINGS],
)
def test_random_texts_as_in_transformers(kind, settings, tmp_path):
    folder = folder_of(kind, settings, tmp_path)
    make = {"roberta": roberta_reference, "deberta": deberta_reference}[kind]
    reference, tokenizer = make(folder, settings), load_tokenizer(folder)
    firsts, seconds = texts(ANY, 1), texts(ANY, 2)
    found = [(each.ids, each.type_ids) for each in reference.encode_batch(firsts)]
    assert ids(tokenizer, firsts) == found
    both = list(zip(firsts, seconds, strict=True))
    found = [(each.ids, each.type_ids) for each in reference.encode_batch(both)]
    assert ids(tokenizer, firsts, tuple(seconds)) == found


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc"])
def test_deberta_ids_are_those_of_sentencepiece(rule, tmp_path):
    """With published tables of characters, on texts of any: where transformers 5 gives others."""
    path = tmp_path / "spm"
    special = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]"}
    special |= {"bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_prefix=str(path),
        vocab_size=300,
        normalization_rule_name=rule,
        minloglevel=2,
        **special,
    )
    path.with_suffix(".model").rename(tmp_path / "spm.model")
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    # spaces that a rule leaves alone at an end are stripped by transformers' converter
    given = [text.strip() for text in texts(ANY, 3)]
    found = [row[1:-1] for row, _ in ids(load_tokenizer(tmp_path), given)]
    expected = own.encode(given)
    # The same pieces in another order score the same: which of both is taken, rounding decides.
    assert list(map(sorted, found)) == list(map(sorted, expected))
    alike = sum(mine == theirs for mine, theirs in zip(found, expected, strict=True))
    assert alike > 0.98 * len(given)
    assert max(map(len, expected)) > 20


def test_deberta_ids_are_those_of_transformers_5_on_ascii(tmp_path):
    folder = folder_of("deberta", {}, tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    given = [text for text in texts(ASCII, 4) if "<num>" not in text]
    found = auto(given)
    expected = list(zip(found["input_ids"], found["token_type_ids"], strict=True))
    assert ids(load_tokenizer(folder), given) == expected
