"""Whole-file replacement: a process killed at any moment leaves the old file or the new one."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from lora_jax.files import full_disk


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file atomically: its content is always the old or the new. Creates its folder."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what then replaces a file, as `write_atomically` does.

    It is for libraries that write files themselves. If the block fails, the file stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with full_disk.naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name also survives a power cut
    finally:
        os.close(folder)
