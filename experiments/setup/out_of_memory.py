"""Say in one line what to lower where a run's memory is not enough."""

import contextlib
import math
from collections.abc import Iterator

import jax

from configs.settings import (
    GenerateSettings,
    ModelSettings,
    RunConfig,
    TokenSettings,
    TrainSettings,
)
from lora_jax.messages import said
from lora_jax.sharding import memory

_SAID = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")
"""Texts in XLA's and its devices' out-of-memory errors, which have no class of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was not enough: the host's or a device's."""
    of_xla = isinstance(error, jax.errors.JaxRuntimeError)
    return isinstance(error, MemoryError) or (of_xla and any(word in str(error) for word in _SAID))


@contextlib.contextmanager
def explained(advised: str) -> Iterator[None]:
    """Turn an out-of-memory error into a ValueError of one line; other errors pass unchanged.

    Args:
      advised: what takes the memory, and what to lower.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(f"out of memory: {advised} ({said(error)[:200]})") from error


def of_a_step(config: RunConfig) -> str:
    """For `explained`: what a step of training takes."""
    return f"{asked(config.train)}; {advice(config)}"


def of_evaluation(config: RunConfig) -> str:
    """For `explained`: what an evaluation takes, whose batches have no parts."""
    size = config.train.batch_size
    return f"config.train.batch_size {size} in evaluation; {advice(config, math.inf)}"


def of_texts(section: GenerateSettings) -> str:
    """For `explained`: what generating texts takes."""
    beams = f", config.generate.beams {section.beams}" if section.beams > 1 else ""
    return (
        f"texts are generated: lower config.generate.batch_size {section.batch_size}{beams} or "
        f"config.generate.max_new_tokens {section.max_new_tokens}"
    )


def of_loading(model: ModelSettings) -> str:
    """For `explained`: what a model's weights take."""
    return (
        f"config.model.name {model.name}, with parameters of {model.dtype}; take a "
        "smaller config.model.dtype or model, or divide the weights over devices (--mesh)"
    )


def asked(section: TrainSettings) -> str:
    """The batch size of a config's `train`, in words."""
    size, rows = section.batch_size, section.batch_size // section.accumulate
    return f"config.train.batch_size {size} in parts of {rows} rows"


def advice(config: RunConfig, times: float = 2.0) -> str:
    """Advice on which settings to change so that a step takes less memory.

    Args:
      times: by what factor it must be less; infinite if smaller parts of a batch do not help.
    """
    parts = config.train.accumulate
    rows = config.train.batch_size // parts
    first = math.ceil(min(times, rows + 1))
    more = next((parts * each for each in range(first, first + 1000) if rows % each == 0), None)
    lower = "lower config.train.batch_size"
    if more is not None:
        lower = (
            f"raise config.train.accumulate from {parts} to {more} (the same batch, in smaller "
            "parts), or lower config.train.batch_size"
        )
    if isinstance(config.data, TokenSettings):
        return f"{lower}, or config.data.max_length {config.data.max_length}"
    return lower


def check_ids(config: RunConfig, tokens: int) -> None:
    """Raise a ValueError if the ids, masks and types of a batch alone do not fit in memory.

    The system gives memory to an array of zeros only on use, and may then kill the process.
    """
    needed, room = 3 * 4 * config.train.batch_size * tokens, memory.host_memory()
    if room is not None and needed > room:
        raise ValueError(
            f"{asked(config.train)} does not fit into memory: its ids take "
            f"{memory.size(needed)}, and {memory.size(room)} are available; "
            f"{advice(config, math.inf)}"
        )
