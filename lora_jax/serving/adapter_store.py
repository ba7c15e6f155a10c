"""More adapters than a bank has slots: on disk, in host memory, and in the slots of a bank."""

import collections
import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from lora_jax.messages import nearest
from lora_jax.serving.bank import Bank
from lora_jax.serving.entries import Adapter, Prepared

T = TypeVar("T")
Load = Callable[[str], tuple[Adapter, str]]
"""From the name of an adapter to the adapter and a digest of its content."""


class UnknownAdapterError(LookupError):
    """There is no adapter of a name. A `load` function raises it."""

    def __init__(self, name: str, known: Collection[str]):
        super().__init__(f"there is no adapter '{name}'; nearest: {nearest(name, known)}")


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a store has done so far."""

    hits: int = 0
    """Leases of adapters that were in a slot."""
    puts: int = 0
    """Adapters that were put into a slot."""
    evictions: int = 0
    """Adapters that left their slot for another."""
    loads: int = 0
    """Loads that have begun."""


@dataclasses.dataclass(frozen=True, eq=False)
class Version:
    """An adapter as one load found it."""

    name: str
    digest: str
    prepared: Prepared
    turn: int
    """When the load began, in the order of all loads."""


class HostCache:
    """The most recently used versions, one of each name; not safe for several threads at once.

    Args:
      most: the most bytes of all together.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._versions: collections.OrderedDict[str, Version] = collections.OrderedDict()
        self.nbytes = 0

    def get(self, name: str) -> Version | None:
        if (found := self._versions.get(name)) is not None:
            self._versions.move_to_end(name)
        return found

    def put(self, version: Version) -> None:
        """Keep a version in the place of another one, unless it alone is too large."""
        self.drop(version.name)
        if version.prepared.nbytes > self._most:
            return
        self._versions[version.name] = version
        self.nbytes += version.prepared.nbytes
        while self.nbytes > self._most:
            self.drop(next(iter(self._versions)))

    def drop(self, name: str) -> None:
        if (found := self._versions.pop(name, None)) is not None:
            self.nbytes -= found.prepared.nbytes


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
    unloaded: bool = False
    """Whether what it alone needs leaves the bank with its last user."""


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

    def release(self, resident: Resident) -> None:
        """One user less. The slot of a retired version is free after its last one."""
        resident.users -= 1
        if self._current.get(resident.name) is resident:
            self._current.move_to_end(resident.name)
        elif not resident.users:
            self._free.append(resident.slot)

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


@dataclasses.dataclass
class _Lent:
    """Who else has the arrays of a bank, so that a put must not take them."""

    readers: int = 0
    kept: bool = False


class AdapterStore:
    """Leases of slots in a bank, for any number of adapters. Threads may share a store.

    An adapter is loaded when it is first asked for. A slot that no lease holds keeps its adapter
    until the slot is needed; the one that was used longest ago is given away first. Host memory
    keeps adapters as the bank holds them, so that they come back without a load. Adapters that
    make new arrays in the bank (`Bank`) have programs compiled, for which all others wait unless
    `shapes_with` was compiled for. What an adapter alone needs leaves the bank after `unload`.

        with store.acquire("alice") as lease, store.using() as bank:
            y = apply(bank, jnp.full(rows, lease.slot), x)

    Args:
      bank: all of its slots are the store's. What is in them is replaced.
      load: gives an adapter of the bank's base, and its digest, by name. It is called in threads of
        the store's own. All who want a name wait for one call. What it raises, `acquire` raises;
        for an unknown name that is `UnknownAdapterError`. An adapter that left memory and is loaded
        again must have the digest that it had, until `reload` or `unload`.
      host_bytes: the most bytes of adapters in host memory.
      threads: how many loads run at once.
    """

    def __init__(
        self, bank: Bank, load: Load, *, host_bytes: int = 2**30, threads: int = 2
    ) -> None:
        if host_bytes < 0:
            raise ValueError(f"host_bytes must not be negative, got {host_bytes}")
        self._bank, self._load = bank, load
        self._lent = _Lent(kept=True)
        self._counts = Counts()
        self._slots, self._host = SlotTable(bank.capacity), HostCache(host_bytes)
        self._lock = threading.RLock()  # nobody waits for a disk or a load with it
        self._turns = itertools.count(1)
        self._loading: dict[str, Future[Version]] = {}
        """The newest load of each name, while it runs and is not out of date."""
        self._since: dict[str, int] = {}
        """The turn before which loads of a name are out of date."""
        self._pinned: dict[str, str] = {}
        """The digest of each name that was loaded: a load finds the same until `reload`."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="adapters")

    # -- for those that compute -------------------------------------------------------------------

    @property
    def bank(self) -> Bank:
        """The bank as it is now, to keep. The next put copies all of its arrays."""
        with self._lock:
            self._lent.kept = True
            return self._bank

    @contextlib.contextmanager
    def using(self) -> Iterator[Bank]:
        """The bank as it is now, to be used in a `with` block only.

        Take the leases before. A put while nobody is in such a block takes the bank's arrays and
        writes one slot; otherwise it copies them. What was called in the block may still be
        running when it ends.
        """
        with self._lock:
            bank, lent = self._bank, self._lent
            lent.readers += 1
        try:
            yield bank
        finally:
            with self._lock:
                lent.readers -= 1

    def acquire(self, name: str, loaded: Version | None = None) -> Lease:
        """A lease of the slot of an adapter, which is loaded and put there if need be.

        Args:
          loaded: as for `acquire_or_load`.

        Raises:
          NoSlotFree: leases hold all slots. The adapter stays in host memory, if there is room.
          LookupError, ValueError, OSError: what `load` raised, or why the adapter does not fit the
            bank (`Bank.prepare`). The bank stays as it was.
        """
        while not isinstance(found := self.acquire_or_load(name, loaded), Lease):
            loaded = found.result()
        return found

    def acquire_or_load(
        self, name: str, loaded: Version | None = None
    ) -> "Lease | Future[Version]":
        """A lease as from `acquire`; if a load must come first, it is begun and not waited for.

        Args:
          loaded: what `fetch` or a load of this name has given, which host memory may not have any
            more. It is not used once it is out of date.

        Returns:
          the lease; or the load, which is not to be cancelled, and whose result is `loaded` then.

        Raises:
          NoSlotFree, ValueError: as for `acquire`.
        """
        with self._lock:
            if (resident := self._slots.current(name)) is not None:
                self._count(hits=1)
                return self._lease(resident)
            version = self._host.get(name) or loaded
            if version is None or not self._is_current(version):
                return self._begun(name)
            return self._put(version)

    def fetch(self, name: str) -> "Future[Version | None]":
        """Load an adapter in the background, for `acquire_or_load`.

        Returns:
          what was loaded or is in host memory, None if it is in a slot, or what `acquire` would
          raise.
        """
        return self._later(name, lambda found: found if isinstance(found, Version) else None)

    def prefetch(self, name: str) -> "Future[str]":
        """Load an adapter into host memory, without waiting for it.

        Returns:
          the digest of what was loaded, or is there already, or what `acquire` would raise.
        """
        return self._later(name, lambda found: found.digest)

    # -- for who looks after it -------------------------------------------------------------------

    def reload(self, name: str) -> str:
        """Load an adapter anew. Later leases have what is found; earlier ones keep what they have.

        Only this, and a load after `unload`, may find another digest than the first load did.

        Returns:
          the digest of what was found.

        Raises:
          LookupError, ValueError, OSError: as for `acquire`. The old version stays.
        """
        return self.load_anew(name).digest

    def load_anew(self, name: str) -> Version:
        """The same as `reload`; what it found is for `acquire_or_load`."""
        with self._lock:
            loading = self._submit(name, anew=True)
        version = loading.result()
        with self._lock:
            self._outdate(name, version.turn)
            if self._is_current(version):
                self._host.put(version)
        return version

    def unload(self, name: str) -> bool:
        """Forget an adapter. Leases keep their slot; a later lease loads it again.

        What it alone needs leaves the bank: the arrays of its method, weights and parameters, once
        no lease has it. Programs are those for the bank without it (`shapes_without`).

        Returns:
          whether there was anything to forget: in a slot, in host memory, or a load that runs.
        """
        with self._lock:
            resident = self._slots.current(name)
            known = any((resident, self._host.get(name), self._loading.get(name)))
            self._outdate(name, next(self._turns))
            self._loading.pop(name, None)
            self._pinned.pop(name, None)
            self._host.drop(name)
            if resident is not None:
                resident.unloaded = True
            if resident is None or not resident.users:  # what has been evicted left its arrays
                self._bank = self._bank.trimmed(self._slots.filled)
        return known

    def shapes_with(self, loaded: Version | None) -> Bank:
        """The shapes of the bank (`Bank.shapes`) once it has what `fetch` gave."""
        with self._lock:
            return self._bank.shapes(loaded and loaded.prepared)

    def shapes_without(self, name: str) -> Bank:
        """The shapes of the bank once an adapter is unloaded, and no lease has it."""
        with self._lock:
            resident = self._slots.current(name)
            leaves = set() if resident is None else {resident.slot}
            return self._bank.trimmed(self._slots.filled - leaves).shapes()

    def held(self) -> dict[str, str]:
        """The digests of the adapters in slots by name, the least recently used first."""
        with self._lock:
            return self._slots.names()

    @property
    def filled(self) -> int:
        """How many slots have an adapter, or an old version that a lease still keeps."""
        return len(self._slots.filled)

    @property
    def host_nbytes(self) -> int:
        """The bytes of the adapters in host memory."""
        return self._host.nbytes

    @property
    def counts(self) -> Counts:
        return self._counts

    def close(self) -> None:
        """End the threads once the loads that run now are done.

        Others are given up: who waits for them gets a `concurrent.futures.CancelledError`.
        """
        self._pool.shutdown(wait=True, cancel_futures=True)

    # -- with the lock held -----------------------------------------------------------------------

    def _put(self, version: Version) -> Lease:
        slot, leaves = self._slots.next_slot()
        donate = not (self._lent.kept or self._lent.readers)
        self._bank = self._bank.put(slot, version.prepared, donate=donate)
        self._lent = _Lent()
        resident = Resident(version.name, version.digest, slot, version.turn)
        self._slots.fill(resident, leaves)
        self._count(puts=1, evictions=int(leaves is not None))
        return self._lease(resident)

    def _lease(self, resident: Resident) -> Lease:
        self._slots.use(resident)
        return Lease(resident, self._release)

    def _release(self, resident: Resident) -> None:
        with self._lock:
            self._slots.release(resident)
            self._trim_after(resident)

    def _trim_after(self, resident: Resident) -> None:
        """Let go of what an unloaded version alone needed, if it has no user any more."""
        if resident.unloaded and not resident.users:
            self._bank = self._bank.trimmed(self._slots.filled)

    def _outdate(self, name: str, before: int) -> None:
        """Let no new lease have what began to load before a turn."""
        self._since[name] = max(before, self._since.get(name, 0))
        self._slots.retire(name, before)

    def _is_current(self, version: Version) -> bool:
        return version.turn >= self._since.get(version.name, 0)

    def _count(self, **more: int) -> None:
        changed = {name: getattr(self._counts, name) + n for name, n in more.items()}
        self._counts = dataclasses.replace(self._counts, **changed)

    # -- loads ------------------------------------------------------------------------------------

    def _later(self, name: str, give: Callable[[Version | Resident], T]) -> "Future[T]":
        """What `give` makes of an adapter that is held, or once it is loaded."""
        result: Future[T] = Future()
        with self._lock:
            if (held := self._slots.current(name) or self._host.get(name)) is not None:
                result.set_result(give(held))
                return result
            loading = self._begun(name)

        def settle(done: Future[Version]) -> None:
            if done.cancelled():  # the store was closed before it began
                result.cancel()
            if not result.set_running_or_notify_cancel():
                return
            if (error := done.exception()) is not None:
                result.set_exception(error)
            else:
                result.set_result(give(done.result()))

        loading.add_done_callback(settle)
        return result

    def _begun(self, name: str) -> "Future[Version]":
        """The load of a name that runs, or a new one; with the lock held."""
        return self._loading.get(name) or self._submit(name)

    def _submit(self, name: str, anew: bool = False) -> "Future[Version]":
        turn = next(self._turns)
        self._count(loads=1)
        loading = self._loading[name] = self._pool.submit(self._read, name, turn, anew)

        def end(done: Future[Version]) -> None:
            with self._lock:
                if self._loading.get(name) is done:
                    del self._loading[name]

        loading.add_done_callback(end)
        return loading

    def _read(self, name: str, turn: int, anew: bool) -> Version:
        """Load a name, in a thread of the pool; its digest may be another one only `anew`."""
        adapter, digest = self._load(name)
        version = Version(name, digest, self._bank.prepare(adapter), turn)
        with self._lock:
            if self._is_current(version):
                if anew:
                    self._pinned[name] = digest
                elif self._pinned.setdefault(name, digest) != digest:
                    raise ValueError(
                        f"the files of '{name}' have changed since it was loaded: reload it"
                    )
                self._host.put(version)
        return version
