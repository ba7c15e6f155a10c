"""Tokenizers from the vocabulary files of BERT, RoBERTa, DeBERTa and GPT-2, as in transformers.

Byte-level byte-pair tokenizers are here, too, as GPT-2, Llama 3, Qwen 2 and SmolLM have them. They
differ in where a text is split before pairs are merged. llama.cpp has a name for each way, which a
GGUF file stores; the tokenizer.json of the published model states the same as rules.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from lora_jax.files import json_text
from lora_jax.messages import first_line, naming, nearest

GPT2_END = "<|endoftext|>"
"""GPT-2's only special token: it begins a text, ends it, and stands for unknown text."""

_BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def from_vocab_txt(path: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """BERT's tokenizer: word pieces, lower-cased unless tokenizer_config.json says otherwise."""
    wrong = f"{path} is not a BERT vocabulary"
    with naming(wrong, Exception):  # tokenizers raises nothing more specific
        vocabulary = models.WordPiece.read_file(str(path))
    _require(_BERT_SPECIAL, vocabulary, wrong)
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    backend.add_special_tokens(_BERT_SPECIAL)
    return backend


def from_merges(path: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """RoBERTa's tokenizer: byte pairs, from vocab.json and the merges.txt beside it."""
    defaults = {
        "bos": "<s>",
        "eos": "</s>",
        "sep": "</s>",
        "cls": "<s>",
        "unk": "<unk>",
        "pad": "<pad>",
        "mask": "<mask>",
    }
    needed = ("cls", "sep", "pad")
    backend, special = _byte_level(path, settings, defaults, needed, "RoBERTa")
    trims, prefix = settings.get("trim_offsets", True), settings.get("add_prefix_space", False)
    backend.post_processor = processors.RobertaProcessing(
        special["sep"], special["cls"], trims, prefix
    )
    return backend


def from_gpt2(path: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """GPT-2's tokenizer, from the same two files; `add_bos_token` puts a token before texts."""
    defaults = {"unk": GPT2_END, "bos": GPT2_END, "eos": GPT2_END}
    backend, special = _byte_level(path, settings, defaults, defaults, "GPT-2")
    if settings.get("add_bos_token"):
        bos, number = special["bos"]
        backend.post_processor = processors.TemplateProcessing(
            ["bos:0", "$A:0"],
            ["bos:0", "$A:0", "bos:1", "$B:1"],
            [{"id": "bos", "ids": [number], "tokens": [bos]}],
        )
    return backend


def _byte_level(
    path: Path,
    settings: dict[str, Any],
    defaults: dict[str, str],
    needed: Iterable[str],
    family: str,
) -> tuple[tokenizers.Tokenizer, dict[str, tuple[str, int]]]:
    """The byte pairs of vocab.json and merges.txt, and the needed special tokens, with their ids.

    Args:
      defaults: the special tokens that `settings` need not name.
      needed: which of them must be in the vocabulary.
    """
    wrong = f"{path} and merges.txt are not a byte-pair vocabulary"
    with naming(wrong, Exception):  # tokenizers raises nothing more specific
        vocabulary, merges = models.BPE.read_file(str(path), str(path.with_name("merges.txt")))
    added = {k: _added(settings.get(f"{k}_token") or token) for k, token in defaults.items()}
    special = {name: added[name].content for name in needed}
    _require([*dict.fromkeys(special.values())], vocabulary, f"{path} is not a {family} vocabulary")
    with naming(wrong):
        prefix = settings.get("add_prefix_space", False)
        backend = byte_pairs(vocabulary, merges, WAYS["gpt-2"], prefix)
    backend.add_special_tokens(list(added.values()))
    return backend, {name: (text, vocabulary[text]) for name, text in special.items()}


def from_spm(path: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """DeBERTa v2's and v3's tokenizer: a SentencePiece unigram model with its character table.

    It follows transformers' DebertaV2Converter. The ids are SentencePiece's, except where several
    consecutive characters combine with one, or a text ends in U+2581. (The DebertaV2Tokenizer of
    transformers 5 omits the model's character table: ligatures, full-width letters and the like
    become unknown, and ids differ.)
    """
    model = _read_spm(path)
    if model.trainer_spec.model_type != 1:
        raise ValueError(f"{path}: not a unigram model, as DeBERTa needs")
    try:
        return _unigram(path, model, settings)
    except ValueError:
        raise
    except Exception as error:  # a piece that is not text, a bad table or id
        raise ValueError(f"{path} is not a SentencePiece model: {first_line(error)}") from None


def _unigram(path: Path, model: Any, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    if not all(math.isfinite(piece.score) for piece in model.pieces):
        raise ValueError(f"{path}: a piece has a score that is not a finite number")
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    _require(["[PAD]", "[UNK]", "[CLS]", "[SEP]"], ids, f"{path} is not a DeBERTa vocabulary")
    backend = tokenizers.Tokenizer(models.Unigram(pieces, model.trainer_spec.unk_id, False))

    steps: list[Any] = [normalizers.Lowercase()] if settings.get("do_lower_case") else []
    steps.append(normalizers.Strip())
    if characters := model.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(characters))
    steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    backend.normalizer = normalizers.Sequence(steps)

    words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    if settings.get("split_by_punct"):
        punctuation = pre_tokenizers.Punctuation(behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([punctuation, words])
    else:
        backend.pre_tokenizer = words
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    control, user_defined = model.SentencePiece.CONTROL, model.SentencePiece.USER_DEFINED
    backend.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type == control)
            for piece in model.pieces
            if piece.type in (control, user_defined)
        ]
    )
    backend.add_special_tokens(_BERT_SPECIAL)  # [MASK] is often not in the model's pieces
    return backend


def _read_spm(path: Path) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise ValueError(
            f"{path}: reading it needs a package that is not installed; "
            "run: pip install sentencepiece protobuf"
        ) from None
    protobuf: Any = sentencepiece_model_pb2  # its classes are created on import
    model = protobuf.ModelProto()
    wrong = f"{path} is not a SentencePiece model"
    with naming(wrong, Exception):  # protobuf's DecodeError, whose module is not stable
        model.ParseFromString(path.read_bytes())
    return model


def _added(token: str | dict[str, Any]) -> AddedToken:
    """A special token from tokenizer_config.json: its text, or an AddedToken as an object."""
    if isinstance(token, str):
        return AddedToken(token, normalized=False, special=True)
    options = {name: token[name] for name in TOKEN_FLAGS if name in token}
    return AddedToken(token["content"], special=True, **options)


def _require(tokens: list[str], vocabulary: dict[str, int], otherwise: str) -> None:
    if missing := [token for token in tokens if token not in vocabulary]:
        raise ValueError(f"{otherwise}: it has no {', '.join(missing)}")


_FLAGS = (
    *("do_lower_case", "tokenize_chinese_chars", "strip_accents"),  # BERT's
    *("add_prefix_space", "trim_offsets", "split_by_punct"),  # RoBERTa's, DeBERTa's
    "add_bos_token",  # GPT-2's
)
_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "sep", "cls", "unk", "pad", "mask"))
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
"""The settings of an added token that is written as an object, beside its content."""


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file, without those that are null; empty if there is no file.

    Raises a one-line ValueError that names the file and the setting for a value of a wrong type.
    """
    if not path.is_file():
        return {}
    content = json_text.read_object(path)
    settings = {name: value for name, value in content.items() if value is not None}
    for name in _FLAGS:
        if not isinstance(settings.get(name, False), bool):
            raise ValueError(f"{path}: {name} must be true or false, got {settings[name]!r}")
    for name in _TOKENS:
        if name in settings and not _is_token(settings[name]):
            raise ValueError(f"{path}: {name} is not a token: {settings[name]!r}")
    return settings


def special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """The special tokens that checked settings name, for example `eos_token: "</s>"`."""
    found = {name: settings[name] for name in _TOKENS if name in settings}
    return {name: x if isinstance(x, str) else x["content"] for name, x in found.items()}


def _is_token(value: Any) -> bool:
    """Whether a value is a text, or an added token as an object: its content and its flags."""
    if isinstance(value, dict):
        flags = (value.get(name, False) for name in TOKEN_FLAGS)
        return isinstance(value.get("content"), str) and all(isinstance(f, bool) for f in flags)
    return isinstance(value, str)


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
                raise ValueError(f"it merges {first!r} and {second!r} but has no {token!r}")
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
