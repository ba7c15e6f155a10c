"""Tokenizers from GGUF files, and exported ones, give the ids of the published ones."""

import sys

import pytest
from one_line import refuses

from lora_jax.data import Examples, encode, load_tokenizer
from lora_jax.data.tokenizing.tokenize import export_tokenizer

pytest.importorskip("gguf")
from gguf_tokenizers import (
    CONTROL,
    SPECIAL,
    TEXTS,
    USER,
    byte_vocabulary,
    published,
    random_texts,
    sentencepiece_model,
    write_bytes,
    write_sentencepiece,
)

INSIDE = [
    "<|im_start|>user\nHi 12<|im_end|>\n<|im_start|>",
    "a<think>b <think> c</think>  \t x",
    " <|endoftext|>  12 <|endoftext|><|IM_END|>",
]


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2", "gpt-2"])
def test_ids_are_those_of_the_published_tokenizer(pre, tmp_path):
    bos = "<|im_start|>" if pre == "llama-bpe" else None
    reference = published(pre, bos)
    tokenizer = load_tokenizer(write_bytes(tmp_path / "model.gguf", pre))
    for text in [*TEXTS, *INSIDE, *random_texts()]:
        expected = reference.encode(text)
        found = tokenizer.backend.encode(text)
        assert (found.ids, found.tokens) == (expected.ids, expected.tokens), repr(text)
        plain = tokenizer.backend.encode(text, add_special_tokens=False).ids
        assert plain == reference.encode(text, add_special_tokens=False).ids
        for skips in (True, False):
            again = tokenizer.backend.decode(plain, skip_special_tokens=skips)
            assert again == reference.decode(plain, skip_special_tokens=skips)
        if pre != "qwen2":
            assert again == text
    assert tokenizer.starts_with_bos == (bos is not None)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)


def test_the_ways_to_split_differ(tmp_path):
    """Otherwise the test above would say little."""
    cut, text = {}, "  1999 THE'LL"
    for pre in ("smollm", "llama-bpe", "qwen2", "default"):
        backend = load_tokenizer(write_bytes(tmp_path / "a.gguf", pre)).backend
        cut[pre] = backend.encode(text, add_special_tokens=False).tokens
    assert cut["smollm"][:5] == ["ĠĠ", "1", "9", "9", "9"]
    assert cut["qwen2"][:6] == ["Ġ", "Ġ", "1", "9", "9", "9"]
    assert cut["llama-bpe"][:5] == ["Ġ", "Ġ", "1", "99", "9"]
    assert cut["default"][:2] == ["Ġ", "Ġ1999"]
    assert len({tuple(tokens) for tokens in cut.values()}) == 4
    whole = load_tokenizer(write_bytes(tmp_path / "b.gguf", None)).backend
    assert whole.encode(text).tokens == cut["default"]


def test_qwen_composes_letters_and_accents(tmp_path):
    backend = load_tokenizer(write_bytes(tmp_path / "a.gguf", "qwen2")).backend
    assert backend.encode("monte\u0301e").ids == backend.encode("montée").ids


def test_llama_3_takes_a_whole_word_that_no_merges_make(tmp_path):
    tokens, merges = byte_vocabulary()
    word = next(a + b for a, b in merges if (a + b).isascii() and len(a + b) > 4)
    own = [" ".join(pair) for pair in merges if "".join(pair) != word]
    for pre in ("llama-bpe", "gpt-2"):
        path = write_bytes(tmp_path / "a.gguf", pre, merges=own)
        found = load_tokenizer(path).backend.encode(word, add_special_tokens=False)
        assert (found.tokens == [word]) == (pre == "llama-bpe")
    assert word in tokens


def test_sentencepiece_ids(tmp_path):
    pytest.importorskip("sentencepiece")
    model = sentencepiece_model()
    tokenizer = load_tokenizer(write_sentencepiece(tmp_path / "model.gguf"))
    assert tokenizer.starts_with_bos
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    texts = [text for text in [*TEXTS, *random_texts()] if "<s>" not in text]
    for text in texts:
        ids = model.encode(text)
        assert tokenizer.backend.encode(text).ids == [1, *ids], repr(text)
        if "▁" not in text and "\0" not in text:
            assert tokenizer.backend.decode(ids) == text
    used = [i for text in texts for i in model.encode(text)]
    assert any(model.is_byte(i) for i in used) and max(map(len, map(model.encode, texts))) > 30


def test_sentencepiece_special_tokens_inside_a_text(tmp_path):
    """As in the tokenizer.json that transformers makes: a space before the text after each."""
    pytest.importorskip("sentencepiece")
    model = sentencepiece_model()
    backend = load_tokenizer(write_sentencepiece(tmp_path / "model.gguf")).backend
    first, second = model.encode("[INST] where is it"), model.encode("<unk")
    assert backend.encode("[INST] where is it</s><unk></s><unk").ids == [
        1,
        *first,
        2,
        0,
        2,
        *second,
    ]
    plain = load_tokenizer(write_sentencepiece(tmp_path / "b.gguf", add_space_prefix=False)).backend
    assert plain.encode(" river").ids == backend.encode("river").ids
    assert plain.decode(plain.encode(" river").ids) == " river"


@pytest.mark.parametrize(
    ("metadata", "around"),
    [
        ({}, ([], [])),
        ({"add_bos_token": True}, ([1], [])),
        ({"add_bos_token": True, "add_eos_token": True}, ([1], [2])),
        ({"add_eos_token": True}, ([], [2])),
        ({"add_bos_token": True, "bos_token_id": None}, ([], [])),
    ],
)
def test_tokens_around_a_text(metadata, around, tmp_path):
    tokenizer = load_tokenizer(write_bytes(tmp_path / "a.gguf", "gpt-2", **metadata))
    before, after = around
    ids = tokenizer.backend.encode("water", add_special_tokens=False).ids
    assert tokenizer.backend.encode("water").ids == [*before, *ids, *after]
    assert tokenizer.starts_with_bos == bool(before)
    pair = tokenizer.backend.encode("water", "water")
    assert pair.ids == [*before, *ids, *after] * 2
    assert pair.type_ids == [0] * (len(pair.ids) // 2) + [1] * (len(pair.ids) // 2)
    examples = Examples("toy", ["water " * 40], None)
    encoded = encode(tokenizer, examples, 8)
    assert encoded.lengths.tolist() == [8] and encoded.truncated == 1
    assert encoded.ids[len(encoded.ids) - len(after) :].tolist() == after


def test_what_pads(tmp_path):
    ids = {"padding_token_id": 0, "eos_token_id": None}
    tokenizer = load_tokenizer(write_bytes(tmp_path / "a.gguf", "gpt-2", **ids))
    assert (tokenizer.pad_id, tokenizer.eos_id) == (0, None)
    write_bytes(tmp_path / "a.gguf", "gpt-2", eos_token_id=None)
    refuses(r"a\.gguf has neither a padding token nor one that ends", load_tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("pre", "metadata", "message"),
    [
        ("tekken", {}, "texts are split by 'tekken', which is not supported; nearest: "),
        ("qwen", {}, "split by 'qwen', which is not supported; nearest: 'qwen2'"),
        ("gpt-2", {"model": "t5"}, "tokenizer 't5' is not supported; nearest: 'gpt2'"),
        ("gpt-2", {"model": None}, "no 'tokenizer.ggml.model'; nearest: "),
        ("gpt-2", {"merges": None}, "no 'tokenizer.ggml.merges'"),
        ("gpt-2", {"merges": ["a b", "ab"]}, "'ab' is not a merge: two tokens and a space"),
        ("gpt-2", {"merges": ["zz qq"]}, "it merges .zz. and .qq. but has no .zz"),
        ("gpt-2", {"token_type": [1, 1]}, "2 token types for "),
        ("gpt-2", {"eos_token_id": 5000}, "eos_token_id 5000 is none of the "),
        (
            "gpt-2",
            {"tokens": ["a", "b"], "token_type": [1] * 2, "merges": ["a b"]},
            "merges 'a' and 'b' but has no 'ab'",
        ),
        (
            "gpt-2",
            {"tokens": ["a", "b", "ab", "a"], "token_type": [1] * 4, "merges": ["a b"]},
            "4 tokens, of which only 3 differ",
        ),
        ("default", {"model": "llama"}, "no 'tokenizer.ggml.scores'"),
        ("default", {"model": "llama", "scores": [0.5]}, "1 scores for "),
        (
            "default",
            {"model": "llama", "remove_extra_whitespaces": True},
            "remove_extra_whitespaces is not supported",
        ),
    ],
)
def test_what_is_refused_is_named(pre, metadata, message, tmp_path):
    path = write_bytes(tmp_path / "model.gguf", pre, **metadata)
    with pytest.raises(ValueError, match=message) as caught:
        load_tokenizer(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and said.count("model.gguf") == 1 and "\n" not in said


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    refuses(r"gone\.gguf: no such file", load_tokenizer, tmp_path / "gone.gguf")
    path = write_bytes(tmp_path / "model.gguf", "gpt-2")
    path.write_bytes(path.read_bytes()[:3000])
    refuses(r"model\.gguf \(3,000 bytes\) is corrupt, truncated", load_tokenizer, tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    refuses(r'pip install "lora-jax\[decoders\]"', load_tokenizer, path)


def test_kinds_of_tokens(tmp_path):
    """A control token is left out where special ones are, a user's is not."""
    tokens, _ = byte_vocabulary()
    kinds = [CONTROL if token in SPECIAL else USER if token == "<think>" else 1 for token in tokens]
    path = write_bytes(tmp_path / "a.gguf", "gpt-2", token_type=kinds)
    backend = load_tokenizer(path).backend
    ids = backend.encode("a<|im_end|><think>").ids
    assert ids[1:] == [2, tokens.index("<think>")]
    assert backend.decode(ids) == "a<think>"
    assert backend.decode(ids, skip_special_tokens=False) == "a<|im_end|><think>"


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_the_tokenizer_of_a_gguf_file_becomes_files(kind, tmp_path):
    path = tmp_path / "model.gguf"
    if kind == "bytes":
        write_bytes(path, "gpt-2")
    else:
        write_sentencepiece(path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text('{"model_type": "llama"}')
    export_tokenizer(path, tmp_path / "out")
    before, after = load_tokenizer(path), load_tokenizer(tmp_path / "out")
    for text in TEXTS:
        assert after.backend.encode(text).ids == before.backend.encode(text).ids
    for name in ("bos_id", "eos_id", "pad_id", "starts_with_bos"):
        assert getattr(after, name) == getattr(before, name), name


def test_the_files_of_a_folder_are_copied_and_no_other(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    names = (
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "additional_chat_templates/a.jinja",
    )
    for name in (*names, "model.safetensors", "train.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    out.mkdir()
    export_tokenizer(source, out)
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    assert found.keys() == set(names)
    assert all(path.read_text() == name for name, path in found.items())
