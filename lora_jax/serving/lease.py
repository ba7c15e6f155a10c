"""The use of an adapter in a slot of a bank, for as long as it is needed."""

import threading
from collections.abc import Callable

from lora_jax.serving.slot_table import Resident


class Lease:
    """The use of an adapter in a slot, which keeps it until `release`; also a context manager.

    Attributes:
      slot: the adapter's number for `Bank.apply`.
      digest: of the version that is in the slot, from the `load` function.
      name: of the adapter.
    """

    def __init__(self, resident: Resident, release: Callable[[Resident], None]) -> None:
        self.slot, self.digest, self.name = resident.slot, resident.digest, resident.name
        self._resident, self._release = resident, release
        self._once = threading.Lock()

    def release(self) -> None:
        """End the use. A second call does nothing."""
        if self._once.acquire(blocking=False):
            self._release(self._resident)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
