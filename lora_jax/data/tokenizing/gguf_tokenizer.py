"""The tokenizer in a GGUF file's metadata: byte-level pairs, or SentencePiece's pairs.

The ids are those of the published tokenizer that the file was made from. transformers reads the
same files but omits some of the tokenizer's rules: see tests/parity/test_gguf_live.py.
"""

from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from lora_jax.data.tokenizing.vocabulary_files import byte_pairs, way_of
from lora_jax.files.gguf_file import GgufError, GgufFile
from lora_jax.messages import nearest
from lora_jax.models.parts.config_checks import shown

# Kinds of tokens (LLAMA_TOKEN_TYPE in llama.cpp); the other kinds are unused tokens and bytes.
_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4
_LONGEST = 10_000  # characters of a token; it is split after each of them


def from_gguf(file: GgufFile) -> tokenizers.Tokenizer:
    """The tokenizer of a file.

    Control tokens and user-defined tokens are found in a text before it is split, as in the
    published tokenizers. Raises a GgufError for an unsupported kind of tokenizer or way to split
    texts, and for inconsistent metadata.
    """
    try:
        return _from_gguf(file)
    except GgufError:  # it names the file already
        raise
    except ValueError as error:
        raise GgufError(file.path, str(error)) from None


def gguf_token_id(file: GgufFile, name: str) -> int | None:
    """The id of "bos", "eos", "unknown" or "padding"; None if the file has none."""
    given = file.value(f"tokenizer.ggml.{name}_token_id", None)
    count = len(file.value("tokenizer.ggml.tokens"))
    if given is not None and not 0 <= given < count:
        raise GgufError(file.path, f"{name}_token_id {given} is none of the {count} tokens")
    return given


def _from_gguf(file: GgufFile) -> tokenizers.Tokenizer:
    kind, tokens = file.value("tokenizer.ggml.model"), file.value("tokenizer.ggml.tokens")
    types = file.value("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise ValueError(f"{len(types)} token types for {len(tokens)} tokens")
    if len(set(tokens)) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens, of which only {len(set(tokens))} differ")
    if kind == "gpt2":
        way = way_of(file.value("tokenizer.ggml.pre", "default"))
        backend = byte_pairs(_numbered(tokens), _pairs(file.value("tokenizer.ggml.merges")), way)
        begins = way.begins
    elif kind == "llama":
        backend, begins = _sentencepiece(file, tokens, types), True
    else:
        raise ValueError(
            f"tokenizer {shown(kind)} is not supported; "
            f"nearest: {nearest(str(kind), ('gpt2', 'llama'))}"
        )
    backend.add_tokens(
        [
            AddedToken(token, normalized=False, special=type != _USER)
            for token, type in zip(tokens, types, strict=True)
            if type in (_UNKNOWN, _CONTROL, _USER)
        ]
    )
    around = [
        gguf_token_id(file, name) if file.value(f"tokenizer.ggml.add_{name}_token", adds) else None
        for name, adds in (("bos", begins), ("eos", False))
    ]
    if around != [None, None]:
        backend.post_processor = _surrounded(tokens, *around)
    return backend


def _sentencepiece(file: GgufFile, tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    """Llama 2's tokenizer: merge characters into the piece of the highest score, else use bytes.

    It follows transformers' LlamaConverter, which makes the published tokenizer.json from
    tokenizer.model: a space comes before every stretch of text, also after special tokens.
    """
    if file.value("tokenizer.ggml.remove_extra_whitespaces", False):
        raise ValueError("remove_extra_whitespaces is not supported")
    scores = file.value("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise ValueError(f"{len(scores)} scores for {len(tokens)} tokens")
    normal = {
        token: score
        for token, score, type in zip(tokens, scores, types, strict=True)
        if type == _NORMAL
    }
    unknown = gguf_token_id(file, "unknown")
    unknown = types.index(_UNKNOWN) if unknown is None and _UNKNOWN in types else unknown
    vocabulary = _numbered(tokens)
    model = models.BPE(
        vocabulary,
        _merges_of(normal, vocabulary),
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    undone: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.value("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend("▁"))
        undone.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(undone)
    return backend


def _merges_of(scores: dict[str, float], ids: dict[str, int]) -> list[tuple[str, str]]:
    """All pairs that make a piece, highest score first; ties are ordered as in transformers."""
    found = []
    for piece, score in scores.items():
        if len(piece) > _LONGEST:
            raise ValueError(f"a token of {len(piece):,} characters; at most {_LONGEST:,}")
        halves = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        pairs = [(a, b) for a, b in halves if a in scores and b in scores]
        pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found += [(score, len(a), len(b), a, b) for a, b in pairs]
    found.sort(key=lambda each: each[:3], reverse=True)
    return [(a, b) for *_, a, b in found]


def _pairs(merges: list[str]) -> list[tuple[str, str]]:
    pairs = []
    for merge in merges:
        first, _, second = merge.partition(" ")
        if not first or not second or " " in second:
            raise ValueError(f"{shown(merge)} is not a merge: two tokens and a space between them")
        pairs.append((first, second))
    return pairs


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def _surrounded(tokens: list[str], bos: int | None, eos: int | None) -> Any:
    """A post-processor that puts the given tokens before and after every text."""
    ids = {name: i for name, i in (("bos", bos), ("eos", eos)) if i is not None}

    def template(text: str, type: int) -> list[str]:
        parts = ("bos" if bos is not None else "", text, "eos" if eos is not None else "")
        return [f"{part}:{type}" for part in parts if part]

    first = template("$A", 0)
    special: list[Any] = [{"id": k, "ids": [i], "tokens": [tokens[i]]} for k, i in ids.items()]
    return processors.TemplateProcessing(first, first + template("$B", 1), special)
