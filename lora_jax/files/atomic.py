"""Whole-file replacement: a process killed at any moment leaves the old file or the new one."""

import os
import secrets
from pathlib import Path

from lora_jax.files import full_disk


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file atomically: its content is always the old or the new. Creates its folder."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with full_disk.naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name also survives a power cut
    finally:
        os.close(folder)
