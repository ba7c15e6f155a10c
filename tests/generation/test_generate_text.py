"""Prompts to texts: their order, their ends, and batches that change nothing."""

import jax
import pytest
import tokenizers
import toy_writer
from one_line import refuses
from tokenizers import decoders, models, pre_tokenizers
from toy_texts import greedy, search, toy

from lora_jax.data import Tokenizer
from lora_jax.generation import generate as module
from lora_jax.generation.beam_search import beam_search
from lora_jax.generation.generate import generate
from lora_jax.generation.generate_text import generate_texts

WORDS = ["<end>", "one", "two", "three", "four"]
PROMPTS = ["one two", "four", "three three one four two two four", "two", "one one one four"]
LONG = "four three one one two two one three four"
SETTINGS = {"eos_ids": 0, "max_new_tokens": 6, "batch_size": 2}


@pytest.fixture
def tokenizer():
    """Of words with the space before them, as GPT-2's; the model knows nothing of <pad>."""
    vocabulary = {"<end>": 0} | {f"Ġ{word}": i for i, word in enumerate(WORDS) if i}
    backend = tokenizers.Tokenizer(models.WordLevel({**vocabulary, "<pad>": 5}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return Tokenizer(backend, 5)


def spelt(prompt):
    return [WORDS.index(word) for word in prompt.split()]


def written(text):
    return " ".join(WORDS[i] for i in text if i not in (0, 2))


def test_texts_are_those_of_each_prompt_alone(tokenizer, x64):
    """The end is left out, a special token or not."""
    prompts = [*PROMPTS, LONG, "three"]
    lengths, start = set(), module._generate._cache_size()
    for seed in range(5):
        weights, given = toy(seed)
        log_p = lambda text: toy_writer.log_probabilities(weights, text)  # noqa: B023, E731
        expected = [written(greedy(log_p, spelt(each), {0, 2}, 6)) for each in prompts]
        settings = {**SETTINGS, "eos_ids": (0, 2)}
        texts = generate_texts(generate, toy_writer.step, given, tokenizer, prompts, **settings)
        assert texts == expected
        lengths |= {len(text.split()) for text in texts}
    assert len(lengths) > 2
    assert module._generate._cache_size() <= start + 2  # of 8 and of 16 tokens


def test_beams_give_their_best(tokenizer, x64):
    settings = {
        **SETTINGS,
        "eos_ids": 2,
        "beams": 3,
        "length_penalty": 1.0,
        "no_repeat_ngram_size": 2,
    }
    weights, given = toy(1)
    texts = generate_texts(beam_search, toy_writer.step, given, tokenizer, PROMPTS, **settings)
    log_p = lambda text: toy_writer.log_probabilities(weights, text)  # noqa: E731
    best = [search(log_p, spelt(p), ends=(2,), beams=3, penalty=1.0, size=2)[0][0] for p in PROMPTS]
    assert texts == [written(text) for text in best]


def test_draws_do_not_depend_on_the_batches(tokenizer):
    settings = {**SETTINGS, "temperature": 1.5, "key": jax.random.key(1)}
    _, given = toy(0, scale=0.5)

    def run(prompts=PROMPTS, **changes):
        given_settings = {**settings, **changes}
        step = toy_writer.step
        return generate_texts(generate, step, given, tokenizer, prompts, **given_settings)

    texts = run()
    assert run(batch_size=5) == texts == run()
    assert run(PROMPTS[:3]) == texts[:3]
    assert run(key=jax.random.key(2)) != texts
    twice = run([PROMPTS[0]] * 5)
    assert len(set(twice)) > 1  # each has draws of its own


@pytest.mark.parametrize(
    ("prompts", "changes", "message"),
    [
        (["one", ""], {}, "prompt 1 '' has no token; begin it with one"),
        ([], {}, "data set 'prompts' is empty"),
        ("one", {}, "data set 'prompts': texts is one string, not a list"),
        (["one two", "two two three"], {"limit": 2}, "a length of 3 exceeds the limit of 2"),
        (["one"], {"eos_ids": -1}, "eos_ids must be an integer >= 0, got -1"),
    ],
)
def test_what_is_refused(tokenizer, prompts, changes, message):
    given = (generate, toy_writer.step, toy(0)[1], tokenizer, prompts)
    refuses(message, generate_texts, *given, **{**SETTINGS, **changes})
