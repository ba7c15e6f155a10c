"""Byte-level byte-pair tokenizers of decoders: how GPT-2, Llama 3, Qwen 2 and SmolLM split a text.

They differ in where a text is split before pairs are merged. llama.cpp has a name for each way,
which a GGUF file stores; the tokenizer.json of the published model states the same as rules.
"""

from typing import Any, NamedTuple

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from lora_jax.suggest import nearest

# GPT-4's pattern, except for how many digits stay together (from the tokenizer.json of Llama 3 and
# of Qwen 2).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Way(NamedTuple):
    """A way to tokenise: how a text is split, and related settings.

    `pattern` splits a text before it becomes bytes; if empty, GPT-2's pattern does. `digits`
    splits off every digit first. `composes` joins letters and their accents (NFC). `whole` keeps a
    word that is in the vocabulary as one token. `begins` puts the begin token before texts, unless
    a file says otherwise.
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
    """The way with this llama.cpp name; ValueError for one that is not supported."""
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
    """A tokenizer without special tokens; `vocabulary` and `merges` write bytes as GPT-2 does.

    Raises a one-line ValueError for merges that use or make tokens outside the vocabulary.
    """
    for first, second in merges:  # otherwise tokenizers may panic
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
