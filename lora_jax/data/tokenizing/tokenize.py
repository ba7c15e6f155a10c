"""Tokenise texts, once per data set, with the tokenizer of a published checkpoint.

The ids are cached between runs: the same texts are tokenised only once.
"""

import dataclasses
import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import tokenizers

from lora_jax.data.examples import Examples, sha256_of
from lora_jax.data.tokenizing.gguf_tokenizer import from_gguf, gguf_token_id
from lora_jax.data.tokenizing.vocabulary_files import (
    GPT2_END,
    from_gpt2,
    from_merges,
    from_spm,
    from_vocab_txt,
    read_settings,
    special_tokens,
)
from lora_jax.files.atomic import write_atomically
from lora_jax.files.gguf_file import SPECIAL_TOKENS, GgufFile
from lora_jax.files.published_paths import cache_folder
from lora_jax.messages import naming
from lora_jax.models import families
from lora_jax.models.published.location import TOKENIZER_FILES
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
        with naming(f"{file} is not a tokenizer", Exception):  # it raises nothing more specific
            backend = tokenizers.Tokenizer.from_file(str(file))
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


_FORMAT = 1  # raise it when the meaning of stored files changes


class Tokenised(NamedTuple):
    """Token ids, the speed at which they were made (examples/s), and whether a file held them."""

    encoded: Encoded
    examples_per_second: float
    from_cache: bool


def encode_cached(
    tokenizer: Tokenizer, examples: Examples, max_length: int, folder: str | Path | None = ""
) -> Tokenised:
    """`encode`, or its cached result for the same texts, tokenizer and `max_length`.

    A digest of these three finds the file, whatever the labels; a damaged file is made again. An
    empty `folder` means `tokens` in `cache_folder()`; with None, nothing is cached. A folder that
    cannot be written gives a warning.
    """
    key = key_of(tokenizer, max_length, examples.text_digest())
    made = cached(key, lambda: encode(tokenizer, examples, max_length), tokenizer.pad_id, folder)
    labels = np.zeros(0) if examples.labels is None else examples.labels
    return made._replace(encoded=dataclasses.replace(made.encoded, labels=labels))


def cached(
    key: str, make: Callable[[], Encoded], pad_id: int, folder: str | Path | None = ""
) -> Tokenised:
    """The result of `make`, or the one cached under `key`; `folder` as in `encode_cached`."""
    if folder is None:
        return _tokenised(make)
    path = Path(folder or cache_folder() / "tokens") / f"{key}.tokens"
    if (found := _read(path, pad_id)) is not None:
        return found
    made = _tokenised(make)
    try:
        write_atomically(path, _bytes(made))
    except OSError as error:
        warnings.warn(f"cannot keep token ids in {path.parent}: {error}", stacklevel=3)
    return made


def key_of(tokenizer: Tokenizer, max_length: int, *content: Any) -> str:
    """The digest of a tokenizer, its `max_length`, and further JSON values."""
    # A tokenizer's results depend only on its own JSON and on the library's version.
    own = hashlib.sha256(tokenizer.backend.to_str().encode()).hexdigest()
    return sha256_of([_FORMAT, tokenizers.__version__, own, tokenizer.pad_id, max_length, *content])


def _tokenised(make: Callable[[], Encoded]) -> Tokenised:
    start = time.perf_counter()
    encoded = make()
    return Tokenised(encoded, len(encoded) / (time.perf_counter() - start), False)


def _bytes(made: Tokenised) -> bytes:
    """A file's content: a digest of what follows, and the arrays as safetensors."""
    encoded = made.encoded
    content = safetensors.numpy.save(
        {
            "ids": encoded.ids,
            "type_ids": encoded.type_ids,
            "offsets": encoded.offsets,
            "labels": encoded.labels,
            "truncated": np.array([encoded.truncated]),
            "examples_per_second": np.array([made.examples_per_second]),
        }
    )
    return hashlib.sha256(content).digest() + content


def _read(path: Path, pad_id: int) -> Tokenised | None:
    """What a file holds; None if there is none, or it is damaged: it is made again."""
    stored = path.read_bytes() if path.is_file() else b""
    digest, content = stored[:32], stored[32:]
    if hashlib.sha256(content).digest() != digest:
        return None
    arrays = safetensors.numpy.load(content)
    truncated, speed = int(arrays.pop("truncated")[0]), float(arrays.pop("examples_per_second")[0])
    encoded = Encoded(**arrays, pad_id=pad_id, truncated=truncated)
    return Tokenised(encoded, speed, True)


_WITH_WORDS = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "tokenizer.model")
_TEMPLATES = "additional_chat_templates"


def has_tokenizer(source: Path) -> bool:
    """Whether there is a tokenizer in the folder or the GGUF file of a published model."""
    return find_gguf(source) is not None or any((source / n).is_file() for n in _WITH_WORDS)


def export_tokenizer(source: str | Path, folder: str | Path) -> None:
    """Copy the tokenizer's files, chat templates among them; of a GGUF file, write such files.

    Args:
      source: the folder or the GGUF file of the published model.
      folder: an existing one; files of these names in it are replaced.
    """
    source, folder = Path(source), Path(folder)
    if not (source / "tokenizer.json").is_file() and (gguf := find_gguf(source)) is not None:
        _write_gguf(GgufFile(gguf), folder)
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, folder / _TEMPLATES, dirs_exist_ok=True)


def _write_gguf(file: GgufFile, folder: Path) -> None:
    backend = from_gguf(file)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, theirs in SPECIAL_TOKENS.items():
        if (number := gguf_token_id(file, theirs)) is not None:
            settings[f"{name}_token"] = backend.id_to_token(number)
    if (template := file.value("tokenizer.chat_template", None)) is not None:
        settings["chat_template"] = template
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
