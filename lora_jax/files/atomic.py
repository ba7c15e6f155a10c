"""Files replaced whole: a process killed at any moment leaves the old one or the new one."""

import os
from pathlib import Path

from lora_jax.files import full_disk
from lora_jax.files.canonical_json import canonical as canonical
from lora_jax.files.canonical_json import config_digest as config_digest
from lora_jax.files.canonical_json import numbers as numbers
from lora_jax.files.canonical_json import plain as plain


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file, creating its folder: at every moment there is the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
        os.fsync(folder)  # the new name, too, outlives a power cut
    finally:
        os.close(folder)
