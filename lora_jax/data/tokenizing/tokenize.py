"""Tokenise texts, once per data set, with the tokenizer of a published checkpoint."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from lora_jax.data.tasks.examples import Examples
from lora_jax.data.tokenizing.gguf_tokenizer import from_gguf, gguf_token_id
from lora_jax.data.tokenizing.tokenizer_files import (
    GPT2_END,
    from_gpt2,
    from_merges,
    from_spm,
    from_vocab_txt,
)
from lora_jax.data.tokenizing.tokenizer_settings import read_settings, special_tokens
from lora_jax.files.gguf_file import GgufFile
from lora_jax.models import families
from lora_jax.models.published.weight_files import find_gguf, read_json

# The file that a folder's tokenizer is built from if it has no tokenizer.json, and its builder.
_BUILDERS = {"vocab.txt": from_vocab_txt, "vocab.json": from_merges, "spm.model": from_spm}


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer that neither pads nor truncates, and the id to pad with.

    `bos_id` and `eos_id` begin and end a text; None if the checkpoint names no such token.
    `starts_with_bos` says whether `backend.encode` itself begins every text with `bos_id` (with
    `add_special_tokens=False` it never does).
    """

    backend: tokenizers.Tokenizer
    pad_id: int
    bos_id: int | None = None
    eos_id: int | None = None
    starts_with_bos: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids of a data set, ragged: example i is `ids[offsets[i]:offsets[i + 1]]`.

    `ids` and `type_ids` are int32; types are 0 in the first text and 1 in the second if the
    tokenizer distinguishes them. `offsets` is int64, with one entry more than there are examples.
    `labels` are those of the examples, or empty. `truncated` counts the examples that did not fit
    in `max_length`.
    """

    ids: np.ndarray
    type_ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    pad_id: int
    truncated: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each example, with special tokens, int64."""
        return np.diff(self.offsets)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the tokenizer of a published checkpoint from its folder, or from its GGUF file.

    It is read from `tokenizer.json` if that exists, else from a GGUF file (see `find_gguf`), else
    from BERT's `vocab.txt`, RoBERTa's or GPT-2's `vocab.json` with `merges.txt`, or DeBERTa's
    `spm.model`, with the settings of `tokenizer_config.json`. A decoder without a padding token
    pads with the token that ends a text. Padding and truncation settings in the file are switched
    off: some checkpoints pad every sentence to 128 tokens. Raises `FileNotFoundError` if there is
    no such file and `ValueError` if it cannot be used.
    """
    folder = Path(path)
    whole = folder / "tokenizer.json"
    if not whole.is_file() and (gguf := find_gguf(path)) is not None:
        return _load_gguf(GgufFile(gguf))
    settings = read_settings(folder / "tokenizer_config.json")
    kind = _kind(folder, settings)
    if whole.is_file():
        file = whole
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing more specific
            raise ValueError(f"{file} is not a tokenizer: {error}") from error
    else:
        file = _vocabulary_file(folder)
        builder = from_gpt2 if kind == "gpt2" and file.name == "vocab.json" else None
        if builder is None and families.is_decoder(kind):
            raise FileNotFoundError(f"{folder}: the tokenizer of a {kind} needs its tokenizer.json")
        backend = (builder or _BUILDERS[file.name])(file, settings)
    tokens = special_tokens(settings)
    if kind == "gpt2":
        tokens = {"bos_token": GPT2_END, "eos_token": GPT2_END} | tokens
    bos, eos = (_id(backend, tokens.get(f"{name}_token")) for name in ("bos", "eos"))
    otherwise = eos if families.is_decoder(kind) else None
    return _plain(backend, _pad_id(backend, tokens, file, otherwise), bos, eos)


def _load_gguf(file: GgufFile) -> Tokenizer:
    backend = from_gguf(file)
    bos, eos, pad = (gguf_token_id(file, name) for name in ("bos", "eos", "padding"))
    pad = eos if pad is None else pad
    if pad is None:
        raise ValueError(f"{file.path} has neither a padding token nor one that ends a text")
    return _plain(backend, pad, bos, eos)


def _plain(backend: tokenizers.Tokenizer, pad: int, bos: int | None, eos: int | None) -> Tokenizer:
    backend.no_padding()
    backend.no_truncation()
    starts = bos is not None and backend.encode("").ids[:1] == [bos]
    return Tokenizer(backend, pad, bos, eos, starts)


def _kind(folder: Path, settings: dict[str, Any]) -> str | None:
    """The model_type that a folder's tokenizer was made for; None if it is not known.

    The tokenizer's class counts before the model's type: SmolLM2 is a Llama with GPT-2's tokenizer.
    """
    named = str(settings.get("tokenizer_class", "")).removesuffix("Fast").removesuffix("Tokenizer")
    if families.is_decoder(named.lower()):
        return named.lower()
    config = folder / "config.json"
    found = read_json(config).get("model_type") if config.is_file() else None
    if not isinstance(found, str | None):
        raise ValueError(f"{config}: model_type {found!r} is not the name of a model")
    return found


class NoRoomError(ValueError):
    """The length limit is so small that a text would have no tokens left."""


def encode(tokenizer: Tokenizer, examples: Examples, max_length: int) -> Encoded:
    """Token ids of all examples, each of at most `max_length` tokens with special tokens.

    From a pair that is too long, tokens are removed at the end of the longer text. Raises
    `NoRoomError` if `max_length` has no room for one token of each text.
    """
    backend = tokenizer.backend
    first, second = examples.texts, examples.second_texts
    texts = list(first) if second is None else list(zip(first, second, strict=True))
    is_pair = second is not None
    least = backend.num_special_tokens_to_add(is_pair) + 1 + is_pair
    if max_length < least:
        raise NoRoomError(
            f"data set {examples.name!r}: max_length {max_length} leaves no room for text, "
            f"it must be at least {least}"
        )
    backend.enable_truncation(max_length, strategy="longest_first")
    try:
        encodings = backend.encode_batch_fast(texts)
    finally:
        backend.no_truncation()
    return Encoded(
        ids=np.concatenate([np.array(each.ids, np.int32) for each in encodings]),
        type_ids=np.concatenate([np.array(each.type_ids, np.int32) for each in encodings]),
        offsets=np.cumsum([0] + [len(each.ids) for each in encodings], dtype=np.int64),
        labels=np.zeros(0) if examples.labels is None else examples.labels,
        pad_id=tokenizer.pad_id,
        truncated=sum(bool(encoding.overflowing) for encoding in encodings),
    )


def _vocabulary_file(folder: Path) -> Path:
    for name in _BUILDERS:
        if (folder / name).is_file():
            if name == "vocab.json" and not (folder / "merges.txt").is_file():
                raise FileNotFoundError(f"{folder}: vocab.json without its merges.txt")
            return folder / name
    raise FileNotFoundError(
        f"no tokenizer in {folder}: neither tokenizer.json nor {', '.join(_BUILDERS)}"
    )


def _pad_id(
    backend: tokenizers.Tokenizer, tokens: dict[str, str], path: Path, otherwise: int | None
) -> int:
    token = tokens.get("pad_token")
    for candidate in [token] if token else ["[PAD]", "<pad>"]:
        pad_id = backend.token_to_id(candidate)
        if pad_id is not None:
            return pad_id
    if otherwise is None or token:
        raise ValueError(f"{path} has no padding token ({token or '[PAD] or <pad>'})")
    return otherwise


def _id(backend: tokenizers.Tokenizer, token: str | None) -> int | None:
    return None if token is None else backend.token_to_id(token)
