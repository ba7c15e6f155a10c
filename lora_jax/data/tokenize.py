"""Texts to token ids, once per data set, with the tokenizer that a checkpoint's folder holds."""

import dataclasses
from pathlib import Path

import numpy as np
import tokenizers

from lora_jax.data.examples import Examples
from lora_jax.data.tokenizer_files import from_merges, from_spm, from_vocab_txt
from lora_jax.data.tokenizer_settings import read_settings

# Which file a folder's tokenizer is built from, where it has no tokenizer.json.
_BUILDERS = {"vocab.txt": from_vocab_txt, "vocab.json": from_merges, "spm.model": from_spm}


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer that neither pads nor truncates, and the id it pads with."""

    backend: tokenizers.Tokenizer
    pad_id: int


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids of a data set, ragged: example i is `ids[offsets[i]:offsets[i + 1]]`.

    `ids` and `type_ids` (0 in the first text, 1 in the second, where the tokenizer tells them
    apart) are int32, `offsets` is int64 with one entry more than there are examples. `labels` are
    those of the examples, empty where these have none. `truncated` counts the examples that did not
    fit in `max_length`.
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
        """Tokens per example, special tokens included, int64."""
        return np.diff(self.offsets)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Reads the tokenizer of a published checkpoint from its folder.

    Takes `tokenizer.json` if there is one, else BERT's `vocab.txt`, RoBERTa's `vocab.json` with its
    `merges.txt`, or DeBERTa's `spm.model`, with the settings of `tokenizer_config.json`. Padding
    and truncation stored in the file are switched off: some checkpoints pad every sentence to 128
    tokens. Raises `FileNotFoundError` if there is no such file and `ValueError` if it cannot be
    used.
    """
    folder = Path(folder)
    settings = read_settings(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer.json"
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing more specific
            raise ValueError(f"{path} is not a tokenizer: {error}") from error
    else:
        path = _vocabulary_file(folder)
        backend = _BUILDERS[path.name](path, settings)
    backend.no_padding()
    backend.no_truncation()
    return Tokenizer(backend, _pad_id(backend, settings, path))


def encode(tokenizer: Tokenizer, examples: Examples, max_length: int) -> Encoded:
    """Token ids of all examples, special tokens included, at most `max_length` for each.

    Of a pair that is too long, tokens are taken from the end of its longer text. Raises
    `ValueError` if `max_length` leaves no room for a token of each text.
    """
    backend = tokenizer.backend
    if examples.second_texts is None:
        texts = list(examples.texts)
    else:
        texts = list(zip(examples.texts, examples.second_texts, strict=True))
    is_pair = examples.second_texts is not None
    least = backend.num_special_tokens_to_add(is_pair) + 1 + is_pair
    if max_length < least:
        raise ValueError(
            f"data set {examples.name!r}: max_length {max_length} leaves no room for text, "
            f"the least is {least}"
        )
    backend.enable_truncation(max_length, strategy="longest_first")
    try:
        encodings = backend.encode_batch_fast(texts)
    finally:
        backend.no_truncation()

    rows = [np.array(encoding.ids, np.int32) for encoding in encodings]
    type_rows = [np.array(encoding.type_ids, np.int32) for encoding in encodings]
    return Encoded(
        ids=np.concatenate(rows),
        type_ids=np.concatenate(type_rows),
        offsets=np.cumsum([0] + [len(row) for row in rows], dtype=np.int64),
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


def _pad_id(backend: tokenizers.Tokenizer, settings: dict, path: Path) -> int:
    token = settings.get("pad_token")
    if isinstance(token, dict):  # an AddedToken, written out
        token = token["content"]
    for candidate in [token] if token else ["[PAD]", "<pad>"]:
        pad_id = backend.token_to_id(candidate)
        if pad_id is not None:
            return pad_id
    raise ValueError(f"{path} has no padding token ({token or '[PAD] or <pad>'})")
