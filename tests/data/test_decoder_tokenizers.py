"""Tokenizers of decoders from folders: what begins, ends and pads a text, and GPT-2's two files."""

import pytest
from gguf_tokenizers import (
    TEXTS,
    gpt2_folder,
    published,
    random_texts,
    write_bytes,
    write_json,
)
from one_line import refuses

from lora_jax.data import load_tokenizer

END = "<|endoftext|>"


@pytest.mark.parametrize(
    "files",
    [
        {"config": {"model_type": "gpt2"}},
        {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer"}},
        {"tokenizer_config": {"tokenizer_class": "GPT2TokenizerFast", "eos_token": END}},
        {
            "config": {"model_type": "llama"},
            "tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024},
        },
    ],
)
def test_gpt2_from_two_files(files, tmp_path):
    tokenizer, reference = load_tokenizer(gpt2_folder(tmp_path, **files)), published("gpt-2")
    for text in [*TEXTS, f"a{END}b {END}", *random_texts(60)]:
        if "<think>" in text or "<|im" in text:
            continue
        assert tokenizer.backend.encode(text).ids == reference.encode(text).ids, repr(text)
        assert tokenizer.backend.decode(tokenizer.backend.encode(text).ids) == text.replace(END, "")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 0, 0)
    assert not tokenizer.starts_with_bos


def test_gpt2_follows_its_settings(tmp_path):
    own = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "pad_token": END}
    own |= {"add_bos_token": True, "add_prefix_space": True, "tokenizer_class": "GPT2Tokenizer"}
    tokenizer = load_tokenizer(gpt2_folder(tmp_path, tokenizer_config=own))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
    assert tokenizer.starts_with_bos
    spaced = published("gpt-2").encode(" water").ids
    assert tokenizer.backend.encode("water").ids == [1, *spaced]
    assert tokenizer.backend.encode("water", " water").ids == [1, *spaced, 1, *spaced]


def whole_folder(folder, bos=None, **files):
    """A decoder's folder with a tokenizer.json."""
    published("llama-bpe", bos).save(str(folder / "tokenizer.json"))
    write_json(folder, **files)
    return folder


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"eos_token": "<|im_end|>"}, (None, 2, 2)),
        ({"eos_token": "<|im_end|>", "pad_token": END}, (None, 2, 0)),
        ({"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}, (1, 2, 2)),
        ({"bos_token": None, "eos_token": "<|im_end|>", "pad_token": None}, (None, 2, 2)),
    ],
)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_decoder_pads_with_what_ends_a_text(settings, expected, model_type, tmp_path):
    files = {"config": {"model_type": model_type}, "tokenizer_config": settings}
    for bos in (None, "<|im_start|>"):
        tokenizer = load_tokenizer(whole_folder(tmp_path, bos, **files))
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == expected
        assert tokenizer.starts_with_bos == (bos is not None and expected[0] == 1)


def test_gpt2s_tokenizer_json_needs_no_settings(tmp_path):
    tokenizer = load_tokenizer(whole_folder(tmp_path, config={"model_type": "gpt2"}))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 0, 0)


EOS = {"eos_token": "<|im_end|>"}
NONE_TO_PAD = r"has no padding token \(\[PAD\] or <pad>\)"


@pytest.mark.parametrize(
    ("make", "model_type", "settings", "merges", "message"),
    [
        (gpt2_folder, "gpt2", {"bos_token": "<nope>"}, "", r"vocab\.json is not a GPT-2 .* no <no"),
        (
            gpt2_folder,
            "gpt2",
            {"add_bos_token": 3},
            "",
            "add_bos_token must be true or false, got 3",
        ),
        (gpt2_folder, "gpt2", {}, "Ġ qqq", r"merges\.txt.*'Ġ' and 'qqq' but has no"),
        # the two files alone do not say how another decoder splits texts
        (gpt2_folder, "qwen2", {}, "", r"tokenizer of a qwen2 needs its tokenizer\.json"),
        (gpt2_folder, None, {}, "", "not a RoBERTa vocabulary: it has no <s>, </s>, <pad>"),
        (whole_folder, None, EOS, "", NONE_TO_PAD),
        (whole_folder, "roberta", EOS, "", NONE_TO_PAD),
        (whole_folder, "bert", EOS, "", NONE_TO_PAD),
        (whole_folder, "llama", {}, "", NONE_TO_PAD),
        (whole_folder, "llama", {**EOS, "pad_token": "<n>"}, "", r"no padding token \(<n>\)"),
    ],
)
def test_folders_that_are_refused(tmp_path, make, model_type, settings, merges, message):
    folder = make(tmp_path, tokenizer_config=settings)
    if model_type:
        write_json(folder, config={"model_type": model_type})
    if merges:
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    refuses(message, load_tokenizer, folder)


def test_a_tokenizer_json_comes_before_a_gguf_file(tmp_path):
    pytest.importorskip("gguf")
    write_bytes(tmp_path / "model.gguf", "gpt-2")
    gguf = load_tokenizer(tmp_path)
    assert gguf.backend.encode("  1999").ids == published("gpt-2").encode("  1999").ids
    own = {"tokenizer_class": "LlamaTokenizer", "eos_token": END}
    folder = whole_folder(tmp_path, tokenizer_config=own)
    assert load_tokenizer(folder).eos_id == 0
    assert load_tokenizer(folder / "model.gguf").eos_id == gguf.eos_id == 2
