"""Which version of an adapter is in which slot of a bank, and who uses it."""

import collections
import dataclasses
import threading
from collections.abc import Callable


class NoSlotFree(RuntimeError):
    """All slots of a bank are in use: try again once an adapter has been released."""


@dataclasses.dataclass(eq=False)
class Resident:
    """One version of an adapter in a slot."""

    name: str
    digest: str
    slot: int
    turn: int
    """When its load began, in the order of all loads."""
    users: int = 0


class SlotTable:
    """The slots 1 to `capacity`; not safe for several threads at once."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._free = list(range(capacity, 0, -1))
        self._current: collections.OrderedDict[str, Resident] = collections.OrderedDict()
        """New users get these; the least recently used comes first."""

    def current(self, name: str) -> Resident | None:
        """The version of an adapter that new users get."""
        return self._current.get(name)

    def names(self) -> dict[str, str]:
        """The digest of each adapter that new users get from its slot."""
        return {name: each.digest for name, each in self._current.items()}

    @property
    def filled(self) -> set[int]:
        """The slots that have an adapter, retired versions included."""
        return {*range(1, self._capacity + 1)} - {*self._free}

    def next_slot(self) -> tuple[int, Resident | None]:
        """The slot to fill next, and what would leave it. Nothing is changed.

        Raises:
          NoSlotFree: each slot has a user.
        """
        if self._free:
            return self._free[-1], None
        for each in self._current.values():
            if not each.users:
                return each.slot, each
        raise NoSlotFree(
            f"all {self._capacity} slots of the bank are in use: release one, or give the bank a "
            "larger capacity"
        )

    def fill(self, resident: Resident, leaves: Resident | None) -> None:
        """Note a version in the slot of `next_slot`, in the place of the one that leaves."""
        if leaves is None:
            self._free.remove(resident.slot)
        else:
            del self._current[leaves.name]
        self._current[resident.name] = resident

    def use(self, resident: Resident) -> None:
        """One more user of a current version."""
        resident.users += 1
        self._current.move_to_end(resident.name)

    def release(self, resident: Resident) -> bool:
        """One user less. Returns whether it was the last of a retired version: its slot is free."""
        resident.users -= 1
        if self._current.get(resident.name) is resident:
            self._current.move_to_end(resident.name)
        elif not resident.users:
            self._free.append(resident.slot)
            return True
        return False

    def retire(self, name: str, before: int) -> None:
        """Give a version whose load began before a turn to no new users."""
        resident = self._current.get(name)
        if resident is None or resident.turn >= before:
            return
        del self._current[name]
        if not resident.users:
            self._free.append(resident.slot)


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
