"""The files of a model beside its weights: they decide what it computes, and from which tokens."""

import hashlib
from pathlib import Path

FILES = (
    "config.json",
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
