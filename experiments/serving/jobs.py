"""What goes between a route and the thread of the model: a job, and what happens to it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.serving.errors import ApiError
from lora_jax.serving.adapter_store import Version


class Started(NamedTuple):
    """A job's adapter is in a slot, and its rows wait or run."""

    digest: str


class Step(NamedTuple):
    """What one row of a job has got: a token, or what else the engine gives, and its end."""

    row: int
    value: Any
    finish: str | None


class Failed(NamedTuple):
    """A job has ended without its answer."""

    error: ApiError


Event = Started | Step | Failed


@dataclasses.dataclass(eq=False)
class Job:
    """A request to compute some rows with one adapter.

    Args:
      adapter: its name; None for the base.
      rows: what the engine takes, one for each sequence.
      post: takes what happens, in the thread of the model.
      loaded: the adapter as it was read for this job, until it is in a slot.
    """

    adapter: str | None
    rows: Sequence[Any]
    post: Callable[[Event], None]
    loaded: Version | None = None
