"""The files of a model beside its weights: they decide what it computes, and from which tokens."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from lora_jax.models.published.weight_files import weight_files

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spm.model",
    "tokenizer.model",
    "chat_template.jinja",
)
FILES = ("config.json", *TOKENIZER_FILES)


def reading_digest(model: str | Path) -> str:
    """The sha256 of a model's config and tokenizer files, in hexadecimal.

    `weights_digest` has the rest of its folder, and all of a GGUF file.
    """
    total = hashlib.sha256()
    for name in FILES:
        if (path := Path(model) / name).is_file():
            content = path.read_bytes()
            total.update(f"{name} {len(content)}\n".encode())
            total.update(content)
    return total.hexdigest()


@contextlib.contextmanager
def unchanged(model: str | Path) -> Iterator[None]:
    """Raise a ValueError at the end of the block if a file of the model was changed in between.

    Digests are of a second reading, which must find what the first one has found.
    """
    before = _state(Path(model))
    yield
    if _state(Path(model)) != before:
        raise ValueError(f"{model}: its files were changed while they were read; start again")


def _state(model: Path) -> dict[str, tuple[int, ...]]:
    files = [*weight_files(model), *(model / name for name in FILES)]
    stats = {str(path): path.stat() for path in files if path.is_file()}
    return {n: (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for n, s in stats.items()}
