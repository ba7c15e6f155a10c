"""More adapters than a bank has slots: on disk, in host memory, and in the slots of a bank."""

import collections
import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from lora_jax.messages import nearest
from lora_jax.serving.bank import Bank
from lora_jax.serving.entries import Adapter, Prepared
from lora_jax.serving.slot_table import Lease, Resident, SlotTable

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


class Programs(Protocol):
    """What computes with a bank, and compiles programs for each structure that banks have."""

    def compiled(self, bank: Bank, /) -> bool:
        """Whether there are programs for a bank, of which these are shapes (`Bank.shapes`).

        If there are only so many at a time, those that were asked for last stay.
        """
        ...

    def compile(self, bank: Bank, /) -> None:
        """Compile all programs for a bank, in another thread than that which computes."""
        ...


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
    make new arrays in the bank (`Bank`) have programs compiled, for which all others wait without
    `compile_first`. What an adapter alone needs leaves the bank after `unload`.

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
        self._lent = _Lent(kept=bool(bank.held and bank.held.arrays))
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
        self._programs: Programs | None = None
        self._trimmed: Callable[[], object] = lambda: None
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="compiler")
        self._compiling: Future[Any] | None = None
        """The newest work of the compiler's thread."""

    def compile_first(
        self, programs: Programs, trimmed: Callable[[], object] = lambda: None
    ) -> None:
        """From now on, let the bank change to one that needs other programs once these are there.

        While they are compiled, in a thread of the store's own, leases that need no new programs
        are given as ever. If that raises an error, the bank stays as it is, and who waits for the
        adapter gets the error.

        Args:
          trimmed: called once something has left the bank, in the thread that let it go.
        """
        with self._lock:
            self._programs, self._trimmed = programs, trimmed

    @property
    def compiling(self) -> bool:
        """Whether programs are compiled now, which cannot be interrupted."""
        return self._compiling is not None and not self._compiling.done()

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
        """A lease as from `acquire`; a load or a compilation before it is begun, not waited for.

        Args:
          loaded: what `fetch` or a load of this name has given, which host memory may not have any
            more. It is not used once it is out of date.

        Returns:
          the lease; or what must come first, which is not to be cancelled, and whose result is
          `loaded` then.

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
            if self._programs is not None and self._lacks(self._bank.shapes(version.prepared)):
                return self._beside(self._compiled_for, version)
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

        What it alone needs leaves the bank, as by `trim`, once no lease has it.

        Returns:
          whether there was anything to forget: in a slot, in host memory, or a load that runs.
        """
        with self._lock:
            found = self._slots.current(name), self._host.get(name), self._loading.get(name)
            self._outdate(name, next(self._turns))
            self._loading.pop(name, None)
            self._pinned.pop(name, None)
            self._host.drop(name)
            self.trim()
        return any(found)

    def trim(self) -> "Future[None]":
        """Let the bank have what the adapters in its slots need, and nothing else (`Bank.trimmed`).

        After `compile_first`, the bank changes once programs are compiled for it, and until then it
        stays as it is. Otherwise it has changed when this returns.

        Returns:
          done once the bank has changed, or with the error for which it has not.
        """
        with self._lock:
            if self._programs is not None:
                return self._beside(self._trim)
            self._trim()
            done: Future[None] = Future()
            done.set_result(None)
            return done

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
        Compilations end in the same way.
        """
        with self._lock:  # leases that are released later have nothing compiled
            self._programs = None
        self._compiler.shutdown(wait=False, cancel_futures=True)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._compiler.shutdown(wait=True)

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
            if self._slots.release(resident):
                self.trim()

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

    # -- programs ---------------------------------------------------------------------------------

    def _lacks(self, shapes: Bank) -> bool:
        """Whether programs for a bank must be compiled before it can be this one."""
        return self._programs is not None and not self._programs.compiled(shapes)

    def _beside(self, work: Callable[..., T], *args: Any) -> "Future[T]":
        """Do something in the compiler's thread; with the lock held."""
        self._compiling = future = self._compiler.submit(work, *args)
        return future

    def _compiled_for(self, version: Version) -> Version:
        """Compile for the bank once it has a version, which may still change until it is put."""
        with self._lock:
            shapes = self._bank.shapes(version.prepared)
        self._compile_for(shapes)
        return version

    def _compile_for(self, shapes: Bank) -> None:
        """In the compiler's thread; without the lock, and nothing if it was done before."""
        programs = self._programs
        if programs is None or programs.compiled(shapes):
            return
        with self._lock:
            programs.compiled(self._bank)  # so that the new ones do not push these out
        shapes.compile_put()
        programs.compile(shapes)

    def _trim(self) -> None:
        while True:
            with self._lock:
                trimmed = self._bank.trimmed(self._slots.filled)
                if trimmed is self._bank:
                    return
                if not self._lacks(shapes := trimmed.shapes()):
                    self._bank = trimmed
                    break
            self._compile_for(shapes)
        self._trimmed()
