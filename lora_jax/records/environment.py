"""A run's environment: versions, device, commit and peak memory."""

import importlib.metadata
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """The record's `versions`, `device` and `git` (None if this file is not in a checkout)."""
    names = ("jax", "jaxlib", "flax", "optax", "lora_jax", "numpy")
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in names},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processor": processor_model(),
        },
        "git": _git(),
    }


def peak_memory_bytes() -> int:
    """The largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def multiplies_bfloat16() -> bool:
    """Whether the device multiplies bfloat16 faster than float32; true where that is unknown.

    AVX512_BF16 alone is enough on AMD's processors. On Intel's, it takes longer than float32.
    """
    lines = processor("vendor_id", "flags", "Features")
    words = {word for line in lines for word in line.split()}
    if jax.default_backend() != "cpu" or not words:
        return True
    return "amx_bf16" in words or words >= {"AuthenticAMD", "avx512_bf16"}


def processor_model() -> str:
    """The model of the machine's processor, as the system calls it; empty where it does not say."""
    models = [line.partition(":")[2].strip() for line in processor("model name")]
    return ", ".join(models) or platform.processor()


def processor(*fields: str) -> list[str]:
    """The lines of these fields in Linux's description of the processors, each once; else none."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    return sorted({line for line in lines if line.startswith(fields)})


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None  # run from a checkout that is not installed


def _git() -> dict[str, str | bool] | None:
    here = Path(__file__)

    def git(*args: str) -> str:
        command = ["git", "-C", str(here.parent), *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:  # installed inside another project's checkout?
        git("ls-files", "--error-unmatch", here.name)
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}
