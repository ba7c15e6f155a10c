"""Log-likelihoods of completions and of options in one row, against whole log-softmaxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoder import functional, random_decoder

import lora_jax as lj
from lora_jax import data
from lora_jax.models.parts.completion import completion_likelihood

FAMILIES = ("llama", "qwen3", "mistral", "gpt2")
PAD = 0


@pytest.fixture(autouse=True)
def exact():
    with jax.enable_x64():
        yield


def rows_of(model, seed=0):
    """Prompts and options of different lengths, by question."""
    random = np.random.default_rng(seed)
    words = model.config.vocab_size
    return [
        (random.integers(1, words, size), [random.integers(1, words, k) for k in options])
        for size, options in ((6, (1, 3, 2)), (2, (4, 1)), (1, (2, 2, 5)), (9, (3, 3)))
    ]


def logits_of(model):
    """The logits of a row, by one compiled program: what follows a row is not seen in it."""
    params, compiled = functional(model)
    return lambda ids: compiled(params, jnp.asarray([*ids, *[PAD] * (24 - len(ids))])[None])[0]


def expected(logits, prompt, option):
    """The log-likelihood of an option, from all logits of a row of its own."""
    logs = jax.nn.log_softmax(logits(np.concatenate([prompt, option])))
    return sum(float(logs[len(prompt) + i - 1, token]) for i, token in enumerate(option))


def encoded(rows):
    """Of pairs (ids, types), as `encode_options` has them."""
    ids = [np.concatenate(parts) for parts in rows]
    types = [np.repeat([0, 1], [len(a), len(b)]) for a, b in rows]
    return data.Encoded(
        ids=np.concatenate(ids).astype(np.int32),
        type_ids=np.concatenate(types).astype(np.int32),
        offsets=np.cumsum([0, *map(len, ids)]),
        labels=np.array([len(b) for _, b in rows]),
        pad_id=PAD,
        truncated=0,
    )


def call(made, split, length=24):
    forward, params = made
    batch = data.collate(split, np.arange(len(split)), length, len(split))
    names = ("input_ids", "attention_mask", "token_type_ids")
    return np.asarray(jax.jit(forward)(params, *(batch[name] for name in names)))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_completion_has_the_likelihood_of_its_row_alone(family):
    model = random_decoder(family, options={"param_dtype": jnp.float64})
    logits = logits_of(model)
    rows = [(prompt, option) for prompt, options in rows_of(model) for option in options]
    wanted = [expected(logits, *row) for row in rows]
    found = call(completion_likelihood(model, 5, chunk=2), encoded(rows))
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_options_in_one_row_have_the_likelihoods_of_rows_of_their_own(family):
    model = random_decoder(family, options={"param_dtype": jnp.float64})
    questions, logits = rows_of(model), logits_of(model)
    rows = [(prompt, option) for prompt, options in questions for option in options]
    offsets = np.cumsum([0, *(len(options) for _, options in questions)])
    split = data.branched(encoded(rows), offsets)
    found = call(completion_likelihood(model, 9, options=3, chunk=4), split)
    for (prompt, options), row in zip(questions, found, strict=True):
        wanted = [expected(logits, prompt, option) for option in options]
        np.testing.assert_allclose(row[: len(options)], wanted, rtol=1e-10)
        assert not row[len(options) :].any()


def test_a_window_counts_a_branch_from_its_prompt():
    model = random_decoder("mistral", options={"param_dtype": jnp.float64}, sliding_window=3)
    assert set(model.config.slides) == {True}
    questions, logits = rows_of(model), logits_of(model)
    rows = [(prompt, option) for prompt, options in questions for option in options]
    offsets = np.cumsum([0, *(len(options) for _, options in questions)])
    found = call(completion_likelihood(model, 9, options=3), data.branched(encoded(rows), offsets))
    for (prompt, options), row in zip(questions, found, strict=True):
        wanted = [expected(logits, prompt, option) for option in options]
        np.testing.assert_allclose(row[: len(options)], wanted, rtol=1e-10)


def test_gradients_are_those_of_the_whole_log_softmax():
    model = random_decoder("llama", options={"param_dtype": jnp.float64})
    rows = [(prompt, option) for prompt, options in rows_of(model) for option in options[:1]]
    split = encoded(rows)
    forward, params = completion_likelihood(model, 4, chunk=3)
    batch = data.collate(split, np.arange(len(split)), 16, len(split))
    ids, mask, types = (batch[n] for n in ("input_ids", "attention_mask", "token_type_ids"))
    whole, _ = lj.from_nnx(model)

    def plain(params):
        logs = jax.nn.log_softmax(whole(params, ids, mask))[:, :-1]
        chosen = jnp.take_along_axis(logs, ids[:, 1:, None], axis=-1)[..., 0]
        return jnp.where(types[:, 1:] == 1, chosen, 0).sum()

    ours = jax.jit(jax.grad(lambda p: forward(p, ids, mask, types).sum()))(params)
    theirs = jax.jit(jax.grad(plain))(params)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_a_row_that_is_all_completion_counts_what_follows_its_first_token():
    model = random_decoder("llama", options={"param_dtype": jnp.float64})
    ids = np.array([3, 5, 7, 2])
    split = encoded([(ids[:0], ids)])
    found, logits = call(completion_likelihood(model, 4), split, length=6), logits_of(model)
    np.testing.assert_allclose(found[0, 0], expected(logits, ids[:1], ids[1:]), rtol=1e-10)


@pytest.mark.parametrize("types", [[1], [1, 2], [1, 2, 0]])
def test_what_nothing_precedes_has_no_likelihood(types):
    """Options of one token each, without a prompt: none is predicted from another."""
    forward, params = completion_likelihood(random_decoder("llama"), 2, options=2)
    ids = jnp.arange(3, 3 + len(types))[None]
    assert not np.any(jax.jit(forward)(params, ids, jnp.ones_like(ids), jnp.array([types])))


def test_prompts_that_were_cut_are_cut_alike_for_all_options():
    prompt, options = np.arange(1, 9), [np.array([9, 9]), np.array([8])]
    cut = encoded([(prompt[2:], options[0]), (prompt[1:], options[1])])
    split = data.branched(cut, np.array([0, 2]))
    assert split.ids.tolist() == [*range(3, 9), 9, 9, 8]
    assert split.type_ids.tolist() == [0] * 6 + [1, 1, 2]
    assert split.labels.tolist() == [3]


def test_no_completion_at_all_is_refused():
    with pytest.raises(ValueError, match="expected completions of one token or more, got 1 of 0"):
        completion_likelihood(random_decoder("llama"), 0)
