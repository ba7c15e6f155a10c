"""A cache of token ids between runs: the same texts are tokenised only once."""

import dataclasses
import hashlib
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import tokenizers

from lora_jax.data.tasks.examples import Examples, sha256_of
from lora_jax.data.tokenizing.tokenize import Encoded, Tokenizer, encode
from lora_jax.files.atomic import write_atomically

_FORMAT = 1  # raise it when the meaning of stored files changes


class Tokenised(NamedTuple):
    """Token ids, the speed at which they were made (examples/s), and whether a file held them."""

    encoded: Encoded
    examples_per_second: float
    from_cache: bool


def cache_folder() -> Path:
    """The user's cache folder of this library: `lora_jax` in XDG_CACHE_HOME or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora_jax"


def encode_cached(
    tokenizer: Tokenizer, examples: Examples, max_length: int, folder: str | Path | None = ""
) -> Tokenised:
    """`encode`, or its cached result for the same texts, tokenizer and `max_length`.

    A digest of these three finds the file; a damaged file is made again. Labels are not stored. An
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
    """The result of `make`, or the one cached under `key`; in both cases without labels.

    `folder` as in `encode_cached`.
    """
    if folder is None:
        return _tokenised(make)
    path = Path(folder or cache_folder() / "tokens") / f"{key}.safetensors"
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
    encoded = dataclasses.replace(make(), labels=np.zeros(0))
    return Tokenised(encoded, len(encoded) / (time.perf_counter() - start), False)


def _bytes(made: Tokenised) -> bytes:
    encoded = made.encoded
    arrays = {
        "ids": encoded.ids,
        "type_ids": encoded.type_ids,
        "offsets": encoded.offsets,
        "truncated": np.array([encoded.truncated]),
        "examples_per_second": np.array([made.examples_per_second]),
    }
    return safetensors.numpy.save({**arrays, "sha256": _digest(arrays)})


def _read(path: Path, pad_id: int) -> Tokenised | None:
    try:
        arrays = safetensors.numpy.load(path.read_bytes())
        intact = (arrays.pop("sha256") == _digest(arrays)).all()
    except Exception:  # no file, or a damaged one: it is made again
        return None
    if not intact or not _is_ragged(arrays):
        return None
    encoded = Encoded(
        ids=arrays["ids"],
        type_ids=arrays["type_ids"],
        offsets=arrays["offsets"],
        labels=np.zeros(0),
        pad_id=pad_id,
        truncated=int(arrays["truncated"][0]),
    )
    return Tokenised(encoded, float(arrays["examples_per_second"][0]), True)


def _is_ragged(arrays: dict[str, np.ndarray]) -> bool:
    """Whether the arrays fit `Encoded`; the file's digest does not ensure that."""
    try:
        ids, types, offsets = (arrays[name] for name in ("ids", "type_ids", "offsets"))
        rows = arrays["truncated"].shape == arrays["examples_per_second"].shape == (1,)
    except KeyError:
        return False
    kinds = (ids.dtype, types.dtype, offsets.dtype) == (np.int32, np.int32, np.int64)
    shaped = rows and ids.ndim == offsets.ndim == 1 and types.shape == ids.shape
    if not (kinds and shaped and len(offsets)):
        return False
    whole = offsets[0] == 0 and offsets[-1] == len(ids) and (np.diff(offsets) >= 0).all()
    return bool(whole and (ids >= 0).all() and (types >= 0).all())


def _digest(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """SHA-256 of named arrays, as bytes (32,) uint8."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        found.update(array.tobytes())
    return np.frombuffer(found.digest(), np.uint8)
