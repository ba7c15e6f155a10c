"""Scores of texts against hand counts and the libraries' published examples."""

import collections
import importlib
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from one_line import refuses
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from lora_jax.data.examples import Prompts
from lora_jax.data.metrics import text_metrics
from lora_jax.data.metrics.text_metrics import (
    bleu,
    chrf,
    exact_match,
    extract_answer,
    rouge_l,
    score_texts,
    words,
)

# README of sacreBLEU 2.
SYSTEM = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]


def counted_bleu(texts, references):
    """BLEU by its formula, of texts whose words are between spaces."""
    hits, said, length, nearest = [0] * 4, [0] * 4, 0, 0
    for text, each in zip(texts, references, strict=True):
        words, others = text.split(), [reference.split() for reference in each]
        length += len(words)
        nearest += min((abs(len(o) - len(words)), len(o)) for o in others)[1]
        for n in range(4):

            def grams(words, n=n):
                return collections.Counter(
                    tuple(words[i : i + n + 1]) for i in range(len(words) - n)
                )

            most = collections.Counter()
            for other in others:
                most |= grams(other)
            hits[n] += (grams(words) & most).total()
            said[n] += grams(words).total()
    short = min(0, 1 - nearest / length)
    return 100 * math.exp(short + sum(math.log(h / s) for h, s in zip(hits, said, strict=True)) / 4)


def test_bleu_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples and 1 of 3 quadruples are in the reference.
    found = bleu(["the cat sat on the mat"], [["the cat sat on a mat"]])
    assert found.value == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4))
    # All of it is there; 5 words for 8 are too few.
    found = bleu(["a b c d e"], [["a b c d e f g h"]])
    assert found.value == pytest.approx(100 * math.exp(1 - 8 / 5))


def test_bleu_of_several_references_not_equally_many():
    rng = np.random.default_rng(0)

    def sentence():
        return " ".join(rng.choice(list("abcd"), rng.integers(5, 12)))

    texts = [sentence() for _ in range(30)]
    references = [[sentence() for _ in range(rng.integers(1, 5))] for _ in texts]
    found = bleu(texts, references)
    assert found.value == pytest.approx(counted_bleu(texts, references), rel=1e-9)
    assert "nrefs:var" in found.signature
    assert "tok:13a" in found.signature
    # Upper case costs matches, unless case is none.
    upper = [text.replace("a", "A") for text in texts]
    assert bleu(upper, references).value < found.value
    lowered = bleu(upper, references, lowercase=True)
    assert lowered.value == pytest.approx(found.value)
    assert "case:lc" in lowered.signature
    assert score_texts(["bleu_lowercase"], upper, references)["bleu_lowercase"] == lowered


def test_sacrebleus_published_example():
    assert bleu(SYSTEM, REFERENCES).value == pytest.approx(48.53, abs=0.005)
    assert chrf(SYSTEM, REFERENCES).value == pytest.approx(59.73, abs=0.005)
    assert chrf(SYSTEM, REFERENCES).signature.startswith("nrefs:2|case:mixed|eff:yes|nc:6|nw:0|")


def test_rouge_l_by_hand_and_as_published():
    # README of rouge-score: 5 words in common, of 8 and of 9.
    target, text = (
        "The quick brown fox jumps over the lazy dog",
        "The quick brown dog jumps on the log.",
    )
    f1 = 2 * (5 / 8) * (5 / 9) / (5 / 8 + 5 / 9)
    assert rouge_l([text], [[target]]).value == pytest.approx(100 * f1)
    # The best reference counts, and the mean over texts.
    found = rouge_l([text, "a b"], [["nothing", target], ["c d"]])
    assert found.value == pytest.approx(100 * f1 / 2)
    assert found.signature.startswith("rougeL|f1|best|stemmer:no|tok:unicode|version:")
    assert words("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 co\u00adop") == [
        "\u0645\u06cc\u062e\u0648\u0627\u0647\u0645",
        "coop",
    ]  # a joiner and a soft hyphen are within words


@given(st.text(st.characters(max_codepoint=127)), st.text(st.sampled_from("aB 1_-\n")))
def test_rouge_l_of_ascii_is_rouge_scores(text, other):
    library = DefaultTokenizer(use_stemmer=False)
    for each in (text, other):
        assert words(each) == library.tokenize(each)
    score = RougeScorer(["rougeL"], use_stemmer=False).score(other, text)["rougeL"]
    assert rouge_l([text], [[other]]).value == 100 * score.fmeasure


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Привет, как дела?", "привет как дела"),
        ("Zoe\u0308 isst Äpfel_2", "zoë isst äpfel 2"),
        ("काम किया।", "काम किया"),
        ("مَرْحَبًا بك", "مَرْحَبًا بك"),
        ("한국어 문장", "한국어 문장"),
        ("今天很好。GPT2很好", "今 天 很 好 gpt2 很 好"),
        ("カタ\u3099 𠀀です", "カ ダ 𠀀 で す"),
        ("กินน้ำ", "กิ น น้ ำ"),
        ("❤\ufe0f a", "a"),
    ],
)
def test_words_of_other_scripts(text, expected):
    assert words(text) == expected.split()
    assert rouge_l([text], [[text]]).value == 100


def test_rouge_l_of_other_scripts_by_hand():
    assert rouge_l(["как дела"], [["как твои дела"]]).value == pytest.approx(80)
    assert rouge_l(["今天很好"], [["今天不好"]]).value == pytest.approx(75)


@pytest.mark.parametrize("name", text_metrics.TEXT_METRICS)
def test_the_same_texts_score_100_and_others_less(name):
    texts = ["one two three four five", "The price is £ 20 - 25 ."]
    same = [["something else", texts[0]], [texts[1]]]
    assert score_texts([name], texts, same)[name].value == pytest.approx(100)
    other = [["six seven eight nine ten"], ["Wholly unlike"]]
    assert score_texts([name], texts, other)[name].value < 20


def test_exact_match_counts_what_is_equal_but_for_outer_spaces():
    assert exact_match([" a", "b", "c ", "D"], [["x", "a "], ["a"], ["c"], ["d"]]).value == 50


TWO = ["a", "b"]
NAMED = ("bleu", "chrf", "rouge_l", "exact_match")


@pytest.mark.parametrize(
    ("names", "texts", "references", "message"),
    [
        (["bleu", "meteor"], ["a"], [["a"]], "there is no metric 'meteor': METEOR"),
        (["nist"], ["a"], [["a"]], "there is no metric 'nist': "),
        (["cider"], ["a"], [["a"]], "there is no metric 'cider': "),
        (["blue"], ["a"], [["a"]], "unknown metric 'blue' of texts; nearest: 'bleu'"),
        *[
            ([name], *case)
            for name in NAMED
            for case in (
                (TWO, [["a"]], "2 texts cannot be scored against references of 1 texts"),
                ([], [], "0 texts cannot be scored"),
                (TWO, [["a"], []], r"references\[1\] is \[\]: expected one or more texts"),
                (["a"], ["a"], r"references\[0\] is 'a': expected one or more texts"),
            )
        ],
    ],
)
def test_what_cannot_be_scored_is_refused(names, texts, references, message):
    refuses(message, score_texts, names, texts, references)


def test_a_library_that_is_missing_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r'sacrebleu: pip install "lora-jax\[decoders\]"'):
        bleu(["a"], [["a"]])
    assert exact_match(["a"], [["a"]]).value == 100


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("the correct answer is true", "true", "true"),
        ("It is false, not true.", "true", "false"),
        ("True", "false", ""),  # LLM-Adapters minds the case
        ("answer12 or answer3", "answer1", "answer1"),
        ("answer6 or answer5", "answer", "answer5"),
        ("solution3 solution2", "solution1", "solution2"),
        ("the correct answer is ending4", "ending1", "ending4"),
        ("option3, option1", "option", "option1"),
        ("answer", "answer", ""),
        ("", "solution", ""),
    ],
)
def test_answers_are_read_as_llm_adapters_does(text, kind, expected):
    assert extract_answer(text, kind) == expected


def test_answers_of_a_part():
    def said(*answers):
        return [f"the correct answer is {answer}" for answer in answers]

    options = [
        said("true", "false"),
        said("answer1", "answer2", "answer3"),
        said("option1", "option2"),
    ]
    prompts = Prompts("p", ["a", "b", "c"], None, options, np.array([1, 0, 1]))
    texts = ["false", "the correct answer is answer5", "I take option2"]
    assert text_metrics.extracted_answers(texts, prompts).tolist() == [1, -1, 1]
    refuses("2 texts for 3 prompts of 'p'", text_metrics.extracted_answers, texts[:2], prompts)
    refuses("unknown kind of answer 'yes'; nearest: ", extract_answer, "yes", "yes")
    refuses(
        "'bare' has no options",
        text_metrics.extracted_answers,
        ["a"],
        Prompts("bare", ["a"], ["b"]),
    )
