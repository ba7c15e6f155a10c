"""Texts to token ids, once per data set, with the tokenizer that a checkpoint's folder holds."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from lora_jax.data.examples import Examples


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

    Takes `tokenizer.json` if there is one, else BERT's `vocab.txt` with the settings of
    `tokenizer_config.json` (lower-casing unless that says otherwise). Padding and truncation stored
    in the file are switched off: some checkpoints pad every sentence to 128 tokens. Raises
    `FileNotFoundError` if there is neither file and `ValueError` if it cannot be used.
    """
    folder = Path(folder)
    settings = _read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer.json"
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing more specific
            raise ValueError(f"{path} is not a tokenizer: {error}") from error
    elif (folder / "vocab.txt").is_file():
        path = folder / "vocab.txt"
        backend = _bert_word_piece(path, settings)
    else:
        raise FileNotFoundError(f"no tokenizer in {folder}: neither tokenizer.json nor vocab.txt")
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


def _bert_word_piece(path: Path, settings: dict) -> tokenizers.Tokenizer:
    vocabulary = models.WordPiece.read_file(str(path))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    missing = [token for token in special if token not in vocabulary]
    if missing:
        raise ValueError(f"{path} is not a BERT vocabulary: it has no {', '.join(missing)}")
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
    backend.add_special_tokens(special)
    return backend


def _pad_id(backend: tokenizers.Tokenizer, settings: dict, path: Path) -> int:
    token = settings.get("pad_token")
    if isinstance(token, dict):  # an AddedToken, written out
        token = token["content"]
    for candidate in [token] if token else ["[PAD]", "<pad>"]:
        pad_id = backend.token_to_id(candidate)
        if pad_id is not None:
            return pad_id
    raise ValueError(f"{path} has no padding token ({token or '[PAD] or <pad>'})")


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
