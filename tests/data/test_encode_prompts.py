"""Token ids of prompts: boundaries by hand and by other programs' rules, lengths, and the cache."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import assume, given, settings, strategies as st
from one_line import refuses
from same_tokens import same
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lora_jax.data import Tokenizer, collate, load_tokenizer
from lora_jax.data.examples import Prompts
from lora_jax.data.tokenizing.encode_prompts import (
    encode_options,
    encode_options_cached,
    encode_prompts,
    encode_prompts_cached,
    option_outputs,
)

ROBERTA = Path(__file__).parents[1] / "fixtures" / "roberta_tokenizer"
EOS, BOS = 1, 2
# Llama 3's rule for what may be one token: a sign keeps the line ends after it.
LLAMA3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(merges, regex=None):
    """A byte-pair tokenizer with these merges over all bytes, and `<eos>` and `<bos>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<eos>", "<bos>", *alphabet, *("".join(pair) for pair in merges)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    if regex:
        split = pre_tokenizers.Split(tokenizers.Regex(regex), "isolated")
        whole = pre_tokenizers.Sequence([split, whole])
    backend.pre_tokenizer = whole
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<pad>", "<eos>", "<bos>"])
    return Tokenizer(backend, 0)


GPT2 = byte_level([("a", "b"), ("Ġ", "c"), ("Ġ", "Ġ"), ("Ċ", "Ċ"), ("a", "a")])
LLAMA = byte_level([("a", "b"), (":", "Ċ"), (":Ċ", "Ċ"), ("Ġ", "c")], LLAMA3)


def metaspace():
    """As Llama 2's: a space is a letter, and every text begins with one."""
    words = ["<pad>", "<eos>", "<bos>", *"▁abcx:\n", "▁x", "▁a", "▁b", "ab"]
    merges = [("▁", "x"), ("▁", "a"), ("▁", "b"), ("a", "b")]
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return Tokenizer(backend, 0)


def pieces(tokenizer, encoded, row=0):
    """The tokens of a row in two halves, as its types say."""
    here = slice(encoded.offsets[row], encoded.offsets[row + 1])
    types = encoded.type_ids[here]
    assert (np.diff(types) >= 0).all()
    words = [tokenizer.backend.id_to_token(int(i)) for i in encoded.ids[here]]
    return words[: len(words) - types.sum()], words[len(words) - types.sum() :]


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "completion", "before", "after"),
    [
        # whole, where a token ends at the boundary
        (GPT2, "x", " c", ["x"], ["Ġc"]),
        (GPT2, "x:\n", "c", ["x", ":", "Ċ"], ["c"]),
        (LLAMA, "x:\n", "c", ["x", ":Ċ"], ["c"]),
        (metaspace(), "x:\n", "ab", ["▁x", ":", "\n"], ["ab"]),
        (metaspace(), "x", " a", ["▁x"], ["▁a"]),
        # a space before the boundary goes with the word after it
        (GPT2, "x ", "c", ["x"], ["Ġc"]),
        (GPT2, "x  ", "c", ["x"], ["Ġ", "Ġc"]),
        (metaspace(), "x ", "b", ["▁x"], ["▁b"]),
        # apart, where a token reaches over it
        (GPT2, "xa", "b", ["x", "a"], ["b"]),
        (GPT2, "x\n\n", "c", ["x", "ĊĊ"], ["c"]),
        (LLAMA, "x:\n", "\nc", ["x", ":Ċ"], ["Ċ", "c"]),
        (metaspace(), "xa", "b", ["▁x", "a"], ["▁b"]),
        # nothing on one side
        (GPT2, "x", "", ["x"], []),
        (GPT2, "", "ab", [], ["ab"]),
    ],
)
def test_boundaries_by_hand(tokenizer, prompt, completion, before, after):
    prompts = Prompts("p", [prompt], [completion])
    found = pieces(tokenizer, encode_prompts(tokenizer, prompts, 20, EOS, BOS))
    assert found == (["<bos>", *before], [*after, "<eos>"])
    if prompt:
        found = pieces(tokenizer, encode_prompts(tokenizer, prompts, 20, EOS))
        assert found == (before, [*after, "<eos>"])
    # Generation is given the same ids.
    alone = Prompts("p", [prompt], None)
    assert pieces(tokenizer, encode_prompts(tokenizer, alone, 20, EOS, BOS)) == (
        ["<bos>", *before],
        [],
    )


TEXTS = st.text(st.sampled_from("abcx:. \n\té"), max_size=12)


@settings(max_examples=150)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), st.sampled_from([GPT2, LLAMA]))
def test_the_text_stays_whole(pairs, tokenizer):
    """Both halves together say prompt and completion, and the prompt is as generation has it."""
    prompts = Prompts("p", [p for p, _ in pairs], [c for _, c in pairs])
    encoded = encode_prompts(tokenizer, prompts, 99, EOS, BOS)
    for row, (prompt, completion) in enumerate(pairs):
        here = slice(encoded.offsets[row], encoded.offsets[row + 1])
        ids, types = encoded.ids[here], encoded.type_ids[here]
        assert tokenizer.backend.decode(ids.tolist()) == prompt + completion
        alone = tokenizer.backend.encode(prompt.rstrip(" ")).ids
        assert ids[types == 0].tolist() == [BOS, *alone]
        assert (ids[-1], types[-1]) == (EOS, 1)


@settings(max_examples=150)
@given(TEXTS.filter(lambda text: text.strip()), TEXTS.filter(str.strip))
def test_as_lm_evaluation_harness_where_no_token_reaches_over_the_boundary(prompt, option):
    """Its rule, for a prompt that ends in no line end: `TemplateLM._encode_pair` of version 0.4."""
    prompts = Prompts("p", [prompt], None, [[option, "x" + option]], np.array([0]))
    encoded, _ = encode_options(GPT2, prompts, 99, BOS)

    assume(prompt.rstrip(" ") == prompt.rstrip())
    spaces = len(prompt) - len(prompt.rstrip())
    context, continuation = prompt[: len(prompt) - spaces], prompt[len(prompt) - spaces :] + option
    whole = GPT2.backend.encode(context + continuation).ids
    start = GPT2.backend.encode(context).ids
    assume(whole[: len(start)] == start)
    ids, types = encoded.ids[: encoded.offsets[1]], encoded.type_ids[: encoded.offsets[1]]
    assert ids.tolist() == [BOS, *whole]
    assert types.sum() == len(whole) - len(start)


def test_e2e_as_loras_script_encodes_it():
    """`gpt2_encode.py`: the context, end of text, a space and the completion, end of text."""
    tokenizer = byte_level([("a", "b"), ("Ġ", "a")])
    prompts = Prompts("p", ["name : ab<eos>", "x<eos>"], [" ab a .", " ."])
    encoded = encode_prompts(tokenizer, prompts, 99, EOS)
    expected = [
        [*tokenizer.backend.encode(before).ids, EOS, *tokenizer.backend.encode(after).ids, EOS]
        for before, after in [("name : ab", " ab a ."), ("x", " .")]
    ]
    assert encoded.ids.tolist() == expected[0] + expected[1]
    assert pieces(tokenizer, encoded, 1) == (["x", "<eos>"], ["Ġ", ".", "<eos>"])


def test_no_template_of_the_tokenizer_gets_in_between():
    tokenizer = load_tokenizer(ROBERTA)
    assert tokenizer.backend.encode("in").ids[0] == 0
    encoded = encode_prompts(tokenizer, Prompts("p", ["in the"], [" art"]), 20, 2)
    plain = tokenizer.backend.encode("in the art", add_special_tokens=False).ids
    assert encoded.ids.tolist() == [*plain, 2]


def test_long_prompts_lose_their_start_and_completions_nothing():
    prompts = Prompts("p", ["xcxcx", "c", "cxcxcxcx"], ["xx", "xxx", "x"])
    whole = encode_prompts(GPT2, prompts, 20, EOS, BOS)
    assert (whole.truncated, whole.lengths.tolist()) == (0, [9, 6, 11])
    for bos, length in ((BOS, 6), (None, 5)):
        cut = encode_prompts(GPT2, prompts, length, EOS, bos)
        start = [] if bos is None else ["<bos>"]
        assert cut.truncated == 2
        assert pieces(GPT2, cut, 0) == ([*start, "c", "x"], ["x", "x", "<eos>"])
        assert pieces(GPT2, cut, 1) == ([*start, "c"], ["x", "x", "x", "<eos>"])
        assert pieces(GPT2, cut, 2) == ([*start, "x", "c", "x"], ["x", "<eos>"])
        assert cut.labels.tolist() == [3, 4, 2]
        assert cut.ids.dtype == cut.type_ids.dtype == np.int32
    assert pieces(GPT2, encode_prompts(GPT2, prompts, 5, EOS, BOS), 1)[0] == ["<bos>"]
    message = (
        r"'p', example 1 \(counted from 0\): max_length 4 leaves no room for its completion of 4"
    )
    for bos in (BOS, None):
        refuses(message, encode_prompts, GPT2, prompts, 4, EOS, bos)
    refuses(
        r"'p', example 0 \(counted from 0\): an empty prompt needs a model with",
        encode_prompts,
        GPT2,
        Prompts("p", ["  "], ["x"]),
        9,
        EOS,
    )


def test_too_long_completions_are_named_as_the_file_has_them_and_counted():
    options = [["c", "x"], ["xxxx", "xxxxx"], ["x", "xxxx"]]
    answers = np.zeros(3, np.int64)
    prompts = Prompts("p", ["x"] * 3, ["c", "xxxx", "xxx"], options, answers, ids=["3", "17", "9"])
    said = r"'p', example 17 \(counted from 0\): max_length 4 leaves no room .* of 5 tokens .*"
    refuses(said + r"\(2 of 3 examples are too long\)$", encode_prompts, GPT2, prompts, 4, EOS, BOS)
    refuses(r" of 5 .* \(1 of 3 examples is too long\)$", encode_prompts, GPT2, prompts, 5, EOS)
    refuses(r" of 4 .* \(2 of 3 examples are too long\)$", encode_options, GPT2, prompts, 4, BOS)
    named = dataclasses.replace(prompts, ids=["boolq/3", "boolq/17", "boolq/9"])
    refuses("'p', example boolq/17: max_length 4 leaves", encode_prompts, GPT2, named, 4, EOS, BOS)


def test_options_are_rows_without_an_end():
    prompts = Prompts("p", ["x ", "xa"], None, [["c", "ab"], ["b", "c", "x"]], np.array([1, 0]))
    encoded, offsets = encode_options(GPT2, prompts, 9, BOS)
    assert offsets.tolist() == [0, 2, 5]
    assert [pieces(GPT2, encoded, row) for row in range(5)] == [
        (["<bos>", "x"], ["Ġc"]),
        (["<bos>", "x"], ["Ġ", "ab"]),
        (["<bos>", "x", "a"], ["b"]),
        (["<bos>", "x", "a"], ["c"]),
        (["<bos>", "x", "a"], ["x"]),
    ]
    assert encoded.labels.tolist() == [1, 2, 1, 1, 1]
    assert encode_options(GPT2, prompts, 3, BOS)[0].truncated == 4
    refuses("'p' has no options", encode_options, GPT2, Prompts("p", ["x"], ["c"]), 9)


def test_a_batch_marks_what_is_learned():
    encoded = encode_prompts(GPT2, Prompts("p", ["xa", "x"], ["c", "cc"]), 9, EOS)
    batch = collate(encoded, np.array([1, 0]), 6, 2)
    assert batch["token_type_ids"].tolist() == [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0]]
    assert batch["label"].tolist() == [3, 2]


def test_option_outputs_by_hand():
    loglik = np.array([-1.0, -2.0, -6.0, -4.0, -5.0])
    found = option_outputs(loglik, np.array([0, 2, 5]))
    assert found.dtype == np.float32
    assert found.tolist() == [[-1, -2, np.float32(-1e30)], [-6, -4, -5]]
    said = r"of shape \(4,\) for 5 options"
    refuses(said, option_outputs, loglik[:4], np.array([0, 2, 5]))


def test_the_second_time_comes_from_the_file(tmp_path):
    options = [["c", "ab"], ["b", "c", "x"]]
    prompts = Prompts("p", ["x", "xa"], ["c", "ab"], options, np.array([0, 0]))

    for cached in (False, True):
        made = encode_prompts_cached(GPT2, prompts, 4, EOS, BOS, tmp_path)
        assert made.from_cache == cached
        same(made.encoded, encode_prompts(GPT2, prompts, 4, EOS, BOS))
        rows, offsets = encode_options_cached(GPT2, prompts, 4, BOS, tmp_path)
        assert rows.from_cache == cached
        same(rows.encoded, encode_options(GPT2, prompts, 4, BOS)[0])
        assert offsets.tolist() == [0, 2, 5]
    for tokenizer, length, eos, bos in [
        (GPT2, 5, EOS, BOS),
        (GPT2, 4, 0, BOS),
        (GPT2, 4, EOS, None),
        (LLAMA, 4, 1, None),
    ]:
        made = encode_prompts_cached(tokenizer, prompts, length, eos, bos, tmp_path)
        assert not made.from_cache
        same(made.encoded, encode_prompts(tokenizer, prompts, length, eos, bos))
        rows, _ = encode_options_cached(tokenizer, prompts, length, bos, tmp_path)
        same(rows.encoded, encode_options(tokenizer, prompts, length, bos)[0])
