"""What we write beside what transformers' `generate` writes, in float64: the same tokens."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from make_fixtures.bert import save_checkpoint
from make_fixtures.decoders import random_tensors
from test_decoders_live import random_config

from lora_jax.generation.beam_search import beam_search
from lora_jax.generation.generate import generate
from lora_jax.models.parts.kv_cache import cached_step
from lora_jax.models.published.load import load_decoder

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from make_fixtures.decoders import exactly, torch_random  # noqa: E402

pytestmark = pytest.mark.parity

PAD, NEW = 7, 12
# Of each family, with windows in all layers, in some and in none.
MODELS = {"llama": 4, "mistral": 1, "qwen2": 1, "qwen3": 1, "gpt2": 0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By family: both sides' decoder, and prompts that are padded on the left."""

    @functools.cache
    def model(kind):
        seed, folder = MODELS[kind], tmp_path_factory.mktemp(kind)
        config = random_config(kind, seed)
        theirs, shapes = torch_random(config, seed)
        save_checkpoint(folder, config, random_tensors(shapes, seed))
        step, params = cached_step(load_decoder(folder, param_dtype=jnp.float64))
        random = np.random.RandomState(seed)
        ids = random.randint(8, config["vocab_size"], (4, 6))
        mask = (np.arange(6) >= np.array([[0], [3], [5], [1]])).astype(np.int64)
        return theirs, step, params, np.where(mask, ids, PAD), mask

    return model


def their(model, ids, mask, ends, **settings):
    """Their tokens (rows, NEW), filled with padding, and the scores of beams."""
    with exactly(), torch.no_grad():
        out = model.generate(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=list(ends),
            pad_token_id=PAD,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )
    tokens = out.sequences.numpy()[:, ids.shape[1] :]
    tokens = np.pad(tokens, ((0, 0), (0, NEW - tokens.shape[1])), constant_values=PAD)
    return tokens, np.asarray(getattr(out, "sequences_scores", ()))


def their_beams(model, ids, mask, ends, **settings):
    """The same of beams; where n-grams count, each prompt alone: padding is no token to us.

    To transformers it is: after two ids of padding, the two may not be written any more.
    """
    if not settings["no_repeat_ngram_size"]:
        return their(model, ids, mask, ends, **settings)
    whole = [row[real == 1][None] for row, real in zip(ids, mask, strict=True)]
    parts = [their(model, row, np.ones_like(row), ends, **settings) for row in whole]
    tokens, scores = zip(*parts, strict=True)
    return np.concatenate(tokens), np.concatenate(scores)


def endings(model, ids, mask):
    """Ids that end some of the texts, early and late: two of those that they write."""
    tokens, _ = their(model, ids, mask, [1])
    return int(tokens[0, 4]), int(tokens[1, 8])


@pytest.mark.parametrize("kind", MODELS)
def test_greedy(kind, models, x64):
    theirs, step, params, ids, mask = models(kind)
    two = endings(theirs, ids, mask)
    for ends in (two, two[:1], (1,)) if kind == "qwen2" else (two,):
        expected, _ = their(theirs, ids, mask, ends)
        settings = {"max_new_tokens": NEW, "eos_ids": ends, "pad_id": PAD}
        found = generate(step, (params,), jnp.asarray(ids), jnp.asarray(mask), **settings)
        np.testing.assert_array_equal(found.tokens, expected)
        assert (found.lengths < NEW).any() or ends == (1,)


# family, beams, length_penalty, early_stopping, no_repeat_ngram_size, how many ids end a text
SEARCHES = [
    ("llama", 4, 1.0, False, 0, 1),
    ("mistral", 4, 0.5, True, 0, 1),
    ("qwen2", 4, 2.0, False, 2, 2),
    ("qwen3", 4, 2.0, "never", 0, 2),
    ("gpt2", 4, 0.9, True, 3, 2),
    ("qwen2", 4, 0.0, False, 0, 2),
    ("llama", 10, 0.9, False, 4, 1),
    ("mistral", 10, 0.5, False, 0, 2),
    ("qwen2", 10, 2.0, True, 2, 1),
    ("gpt2", 10, 1.0, "never", 3, 1),
]


@pytest.mark.parametrize(("kind", "beams", "penalty", "early", "ngram", "count"), SEARCHES)
def test_beam_search(kind, beams, penalty, early, ngram, count, models, x64):
    theirs, step, params, ids, mask = models(kind)
    ends = endings(theirs, ids, mask)[:count]
    expected, scores = their_beams(
        theirs,
        ids,
        mask,
        ends,
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=penalty,
        early_stopping=early,
        no_repeat_ngram_size=ngram,
    )
    found = beam_search(
        step,
        (params,),
        jnp.asarray(ids),
        jnp.asarray(mask),
        max_new_tokens=NEW,
        eos_ids=ends,
        pad_id=PAD,
        beams=beams,
        length_penalty=penalty,
        early_stopping=early,
        no_repeat_ngram_size=ngram,
    )
    np.testing.assert_array_equal(found.tokens.reshape(-1, NEW), expected)
    np.testing.assert_allclose(found.scores.reshape(-1), scores, atol=1e-9)
