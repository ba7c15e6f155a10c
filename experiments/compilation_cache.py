"""Keep compiled programs between processes, so that only a new program is compiled."""

import hashlib
import os
import platform
from importlib.metadata import version

import jax

from lora_jax.data.tokenizing.tokenize import cache_folder
from lora_jax.records.environment import processor

FOLDER = "jax_compilation_cache_dir"
MOST = 2 * 2**30
"""Bytes of programs to keep; those that were used least recently make room."""


def keep_programs() -> None:
    """Use JAX's compilation cache in the user's cache folder; a user's own choice is left alone."""
    if "JAX_ENABLE_COMPILATION_CACHE" in os.environ or getattr(jax.config, FOLDER):
        return
    settings = {
        FOLDER: str(cache_folder() / "programs" / machine()),
        "jax_compilation_cache_max_size": MOST,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)


def machine() -> str:
    """A name for what programs are compiled for, which JAX's own keys lack: the processor.

    A program for another one can stop a process with an illegal instruction.
    """
    kinds = [platform.machine(), platform.processor(), version("jaxlib")]
    said = "\n".join([*kinds, *processor("model name", "flags", "Features")])
    return hashlib.sha256(said.encode()).hexdigest()[:16]
