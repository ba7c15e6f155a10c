"""GGUF files beside transformers' own reading of them: logits, perplexity, token ids.

Where transformers 5.24 gives other ids than the published tokenizer, a test names the difference.
"""

import re
import unicodedata

import jax.numpy as jnp
import numpy as np
import pytest
from chat_templates import CONVERSATIONS
from flax import nnx
from gguf_files import TYPES, write_decoder
from gguf_tokenizers import (
    SPECIAL,
    TEXTS,
    gpt2_folder,
    random_texts,
    sentencepiece_model,
    write_bytes,
    write_sentencepiece,
)
from small_decoder import functional, random_decoder, random_ids

from lora_jax.data import load_tokenizer
from lora_jax.data.tokenizing.chat_templates import load_chat_template
from lora_jax.models.published.load import load_decoder
from lora_jax.models.published.location import locate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

PARAGRAPH = """The Seine rises in Burgundy and flows north-west through Paris, where 12 bridges were
built before 1800, to Le Havre; its basin drains most of the north of France. Barges carried wine,
timber and grain, and later coal. In 1910 it rose 8.62 metres and flooded the city for two months.
"""


def torch_decoder(path):
    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def torch_tokenizer(path):
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def torch_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor(np.asarray(ids), dtype=torch.long)).logits.numpy()


def perplexity(logits, ids):
    """Of tokens (T,) after the first, by logits (T, vocabulary)."""
    exact = logits[:-1].astype(np.float64)
    exact -= exact.max(-1, keepdims=True)
    likelihoods = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    return np.exp(-likelihoods[np.arange(len(ids) - 1), ids[1:]].mean())


def test_smollm2_computes_what_it_does_in_torch():
    path = locate("smollm2")
    ids = load_tokenizer(path).backend.encode(PARAGRAPH).ids
    expected = torch_logits(torch_decoder(path), [ids])[0]
    params, apply = functional(load_decoder(path))
    found = np.asarray(apply(params, jnp.asarray([ids], jnp.int32)))[0]
    assert len(ids) > 60
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    own, theirs = perplexity(found, ids), perplexity(expected, ids)
    assert abs(own / theirs - 1) < 1e-4 and 5 < own < 60


@pytest.mark.parametrize(
    ("arch", "changes", "type"),
    [
        ("llama", {"head_dim": 32}, "F32"),
        ("llama", {"head_dim": 32}, "Q8_0"),
        ("qwen2", {"use_sliding_window": False}, "Q4_1"),
        ("qwen3", {"head_dim": 128}, "F32"),  # transformers reads no other
        ("gpt2", {}, "Q8_0"),
    ],
)
def test_small_decoders_as_in_torch(arch, changes, type, tmp_path):
    sizes = {"n_embd": 32, "n_positions": 1024}  # transformers does not read how many
    if arch != "gpt2":
        sizes = {"hidden_size": 64, "intermediate_size": 96}
    model = random_decoder(arch, **sizes, **changes, bos_token_id=1, eos_token_id=2)
    path = write_decoder(
        tmp_path / "model.gguf",
        model,
        arch,
        TYPES[type],
        {"tokenizer.ggml.tokens": [str(i) for i in range(23)]},
    )
    ids = random_ids(tokens=12)
    loaded = load_decoder(path)
    expected = torch_logits(torch_decoder(path), ids)
    params, apply = functional(loaded)
    error = np.abs(np.asarray(apply(params, ids)) - expected).max()
    assert error <= 1e-5 * np.abs(expected).max()
    exact = np.asarray(functional(model)[1](nnx.state(model), ids))
    assert (np.abs(exact - expected).max() <= 1e-5 * np.abs(expected).max()) == (type == "F32")


# ---- tokenizers ---------------------------------------------------------------------------------


def cut_alike(text):
    """Whether it matters not that transformers leaves SmolLM's cutting of digits out.

    It does where several spaces stand before a digit, and for digits that are not ASCII, whose
    bytes are merged with others.
    """
    digits = [i for i, each in enumerate(text) if unicodedata.category(each).startswith("N")]
    return all(text[i].isascii() and not (i > 1 and text[i - 2 : i].isspace()) for i in digits)


@pytest.fixture(scope="module")
def of_smollm2():
    """transformers takes ten seconds to make the tokenizer."""
    path = locate("smollm2")
    return path, torch_tokenizer(path)


def test_smollm2s_ids(of_smollm2):
    path, theirs = of_smollm2
    ours = load_tokenizer(path)
    inside = [
        "<|im_start|>user\nHi 12<|im_end|>\n",
        "a<|endoftext|> b <repo_name>x<file_sep>",
        "<|im_",
    ]
    texts = [
        text for text in [PARAGRAPH, *TEXTS, *inside, *random_texts(900, 1)] if cut_alike(text)
    ]
    assert len(texts) > 500
    for text in texts:
        assert ours.backend.encode(text).ids == theirs(text)["input_ids"], repr(text)
        ids = ours.backend.encode(text).ids
        assert ours.backend.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.backend.decode(ids, skip_special_tokens=False) == text
    named = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == named


def test_smollm2s_own_template(of_smollm2):
    path, theirs = of_smollm2
    ours = load_chat_template(path)
    for messages in CONVERSATIONS.values():
        for asks in (False, True):
            expected = theirs.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=asks
            )
            assert ours.render(messages, add_generation_prompt=asks) == expected


def test_digits_after_spaces_are_not_transformers(of_smollm2):
    """SmolLM2's tokenizer.json cuts digits off before words; transformers reads that of no file."""
    path, theirs = of_smollm2
    text = "a   1"
    found = load_tokenizer(path).backend.encode(text).tokens
    assert found == ["a", "ĠĠĠ", "1"]
    assert theirs.convert_ids_to_tokens(theirs(text)["input_ids"]) == ["a", "ĠĠ", "Ġ", "1"]


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "gpt-2"])
@pytest.mark.parametrize("adds", [True, False])
def test_small_byte_vocabularies(pre, adds, tmp_path):
    """Qwen's letters and accents are brought together first, which transformers leaves out."""
    path = write_bytes(tmp_path / "model.gguf", pre, add_bos_token=adds)
    theirs, ours = torch_tokenizer(path), load_tokenizer(path)
    inside = [f"a{token}b {token} 12" for token in [*SPECIAL, "<think>"]]
    spaces = "  \t"  # transformers does not find a user's token that is not spelt in bytes
    for text in [*TEXTS, *inside, *random_texts(400, 2)]:
        if spaces in text:
            continue
        given = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        assert ours.backend.encode(text).ids == theirs(given)["input_ids"], repr(text)
    assert ours.starts_with_bos == adds
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    pair = ours.backend.encode("one", "two")
    expected = theirs("one", "two", return_token_type_ids=True)
    assert (pair.ids, pair.type_ids) == (expected["input_ids"], expected["token_type_ids"])


def test_small_sentencepiece_vocabulary(tmp_path):
    """But where a text begins with a space, before which SentencePiece has another."""
    pytest.importorskip("sentencepiece")
    path = write_sentencepiece(tmp_path / "model.gguf")
    theirs, ours = torch_tokenizer(path), load_tokenizer(path)
    texts = [*TEXTS, *random_texts(400, 3), "a<s>", "<unk>", "a b</s>"]
    for text in (text for text in texts if not re.search("^[ ▁]|<s>.", text)):
        assert ours.backend.encode(text).ids == theirs(text)["input_ids"], repr(text)
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.backend.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    model = sentencepiece_model()
    assert ours.backend.encode("  river").ids == [1, *model.encode("  river")]
    assert theirs("  river")["input_ids"] != [1, *model.encode("  river")]


def test_gpt2s_two_files(tmp_path):
    for settings in ({}, {"add_prefix_space": True}, {"add_bos_token": True}):
        own = {"tokenizer_class": "GPT2Tokenizer", **settings}
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        gpt2_folder(folder, config={"model_type": "gpt2"}, tokenizer_config=own)
        theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
        for text in [*TEXTS, *random_texts(300, 4), "a<|endoftext|> b<|endoftext|>"]:
            assert ours.backend.encode(text).ids == theirs(text)["input_ids"], repr(text)
        assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
        assert theirs.pad_token_id is None and ours.pad_id == ours.eos_id
