"""Byte-level byte-pair tokenizers of decoders: how GPT-2, Llama 3, Qwen 2 and SmolLM split a text.

What differs between them is where a text is cut before pairs are merged. llama.cpp has a name for
each way, which a GGUF file holds; the tokenizer.json of the published model has the same as rules.
"""

from typing import Any, NamedTuple

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from lora_jax.suggest import nearest

# GPT-4's, but for how many digits stay together (the tokenizer.json of Llama 3 and of Qwen 2).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Way(NamedTuple):
    """A way to tokenise: what cuts a text, and what else goes with it.

    `pattern` cuts before bytes are taken, GPT-2's own does where it is empty; `digits` cuts every
    digit off first; `composes` brings letters and their accents together (NFC); `whole` takes a
    word that is in the vocabulary as it is; `begins` texts with the token for that, unless a file
    says otherwise.
    """

    pattern: str = ""
    digits: bool = False
    composes: bool = False
    whole: bool = False
    begins: bool = False


_LLAMA3 = Way(_WORDS.replace("DIGITS", "{1,3}"), whole=True, begins=True)
WAYS = {
    "gpt-2": Way(),
    "default": Way(),
    "smollm": Way(digits=True),
    "llama-bpe": _LLAMA3,
    "qwen2": Way(_WORDS.replace("DIGITS", ""), composes=True),
}


def way_of(name: str) -> Way:
    """The way that llama.cpp calls so; ValueError for one that is not here."""
    if name not in WAYS:
        raise ValueError(
            f"texts are split by {name!r}, which is not supported; nearest: {nearest(name, WAYS)}; "
            f"supported: {', '.join(WAYS)}"
        )
    return WAYS[name]


def byte_pairs(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    way: Way,
    add_prefix_space: bool = False,
) -> tokenizers.Tokenizer:
    """A tokenizer without special tokens; `vocabulary` and `merges` spell bytes as GPT-2 does.

    ValueError of one line for merges that are not of the vocabulary.
    """
    for first, second in merges:  # with some such, tokenizers ends in a panic
        for token in (first, second, first + second):
            if token not in vocabulary:
                raise ValueError(
                    f"not a byte-pair vocabulary: it merges {first!r} and {second!r} "
                    f"but has no {token!r}"
                )
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=way.whole))
    if way.composes:
        backend.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if way.digits else []
    if way.pattern:
        steps.append(pre_tokenizers.Split(Regex(way.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space, use_regex=not way.pattern))
    backend.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend
