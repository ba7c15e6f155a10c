"""What the thread of the model needs of that which computes rows."""

from collections.abc import Iterable
from typing import Any, Protocol

from lora_jax.serving.bank import Bank


class Engine(Protocol):
    """Computes rows, a few at a time; `experiments.serving.generating` has one.

    A step gives the number, the value and the end of rows. One that raises an error must be
    followed by one that gives the end `error` of the rows that it has spoilt.
    """

    @property
    def waiting(self) -> int: ...
    @property
    def active(self) -> int: ...
    def submit(self, slot: int, row: Any) -> int: ...
    def cancel(self, number: int) -> None: ...
    def step(self, bank: Bank) -> Iterable[tuple[int, Any, str | None]]: ...
    def restart(self, bank: Bank) -> None: ...
    def warm(self, bank: Bank) -> None: ...
    def let_go(self) -> None:
        """Hold no memory of a bank's arrays until the next step, as a put takes them."""
