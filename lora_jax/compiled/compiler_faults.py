"""Faults of released compilers, and the flag that avoids them.

On CPUs, jaxlib 0.10.2 to 0.12.0.1 give a product that is reduced at once to a library, whose fused
form reads uninitialised memory. So `sum((E @ full_like(E, c)) * E, -1)` over a batch, which reverse
mode makes of a sum, can be wrong by any amount, up to NaN. 0.10.2 also computes `vmap(matvec)`
wrong if more than 32,768 rows are reduced (jax issue 39103). Without the fusion of reductions, both
are right. Options of `jax.jit` do not reach that compiler pass, but XLA_FLAGS does. XLA reads it
once, when a process makes its first backend.
"""

import os
import re
import warnings
from importlib.metadata import version
from pathlib import Path

import jax

FAULTY = ("0.10.2", "0.12.0.1")
"""The first and the last jaxlib with the fault. All in between know the flag. Others may not, and
XLA ends a process that sets an unknown flag."""
FLAG = "--xla_cpu_experimental_ynn_fusion_type"
CURE = f"{FLAG}=-reduce"


def cure() -> None:
    """Switch the faulty fusion off if this jaxlib has it; `import lora_jax` calls this.

    A user's own setting is kept. If it leaves the fusion on, or if a backend already exists and so
    the flags have been read, one warning says what to set.
    """
    if not is_faulty(version("jaxlib")):
        return
    given = os.environ.get("XLA_FLAGS", "")
    is_file = bool(given.strip()) and not given.lstrip().startswith("-")
    if is_file or FLAG in given:
        if not is_cured(_content(given.strip()) if is_file else given):
            why = f"the file {given} leaves them on" if is_file else "XLA_FLAGS switches them on"
            _warn(why, f"put {CURE} into it")
    elif _backend_exists():
        why = "JAX was used before lora_jax could switch them off"
        _warn(why, f"start Python with XLA_FLAGS={CURE}, or import lora_jax first")
    else:
        os.environ["XLA_FLAGS"] = f"{given} {CURE}".strip()


def is_faulty(jaxlib: str) -> bool:
    """Whether this version of jaxlib has the fault."""
    first, last = (_numbers(each) for each in FAULTY)
    return first <= _numbers(jaxlib) <= last


def is_cured(flags: str) -> bool:
    """Whether XLA_FLAGS with this text switch off the fusion of reductions.

    The flag lists what is fused; names with a sign change XLA's default list.
    """
    values = re.findall(rf"{FLAG}=(\S*)", flags)
    if not values:
        return False
    names = values[-1].strip("\"'").lower().split(",")  # the last one counts
    return "-reduce" in names or names in ([""], ["individual_dot"])


def _content(file: str) -> str:
    """The text of the file that XLA reads if XLA_FLAGS does not begin with a flag."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:4])


def _backend_exists() -> bool:
    from jax._src import xla_bridge  # public functions would make a backend

    return xla_bridge.backends_are_initialized() and "cpu" in xla_bridge.backends()


def _warn(why: str, advice: str) -> None:
    warnings.warn(
        f"on CPUs, jaxlib {version('jaxlib')} computes some fused reductions wrong, and {why}: "
        f"{advice} (JAX {jax.__version__})",
        stacklevel=4,
    )
