"""A store that several threads use at once. Nothing here sleeps."""

import threading
import types
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import stored_adapters as stored

import lora_jax as lj
from lora_jax.serving.programs import ProgramsOfBanks

THREADS = 4


@pytest.fixture(scope="module")
def start():
    return stored.begun()


def bank(capacity=THREADS):
    return lj.Bank(stored.forward, stored.PARAMS, capacity=capacity, max_rank=2)


class Slow:
    """A `load` function that waits, for one name, after it has read."""

    def __init__(self, disk, name):
        self.disk, self.name = disk, name
        self.reads, self.begun, self.go = [], threading.Event(), threading.Event()

    def __call__(self, name):
        found = self.disk(name)
        self.reads.append(name)
        if name == self.name and not self.go.is_set():
            self.begun.set()
            assert self.go.wait(60)
        return found


@pytest.fixture
def slow(start):
    return Slow(stored.Disk(start, {"a": 1, "b": 2, "c": 3}), "a")


def test_a_name_is_loaded_once_and_others_do_not_wait(slow):
    store = lj.AdapterStore(bank(), slow, host_bytes=0)
    with ThreadPoolExecutor(THREADS) as pool:
        barrier = threading.Barrier(THREADS + 1)

        def use():
            barrier.wait(60)
            return store.acquire("a")

        found = [pool.submit(use) for _ in range(THREADS)]
        first = store.prefetch("a")
        barrier.wait(60)
        assert slow.begun.wait(60)
        with store.acquire("b") as other:  # while the load of the first one waits
            assert other.digest == "digest 2"
        assert not any(each.done() for each in found)
        slow.go.set()
        leases = [each.result(60) for each in found]
    assert first.result(60) == "digest 1"
    assert {(each.slot, each.digest) for each in leases} == {(leases[0].slot, "digest 1")}
    assert leases[0].slot != other.slot
    assert store.counts.puts == 2
    store.close()


def test_loads_that_wait_when_a_store_closes_are_cancelled(slow):
    store = lj.AdapterStore(bank(), slow, host_bytes=0, threads=1)
    first = store.prefetch("a")
    assert slow.begun.wait(60)
    waiting = [store.prefetch(name) for name in "bbc"]
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(store.close)
        for each in waiting:
            with pytest.raises(CancelledError):
                each.result(60)
        slow.go.set()
        closing.result(60)
    assert first.result(60) == "digest 1" and slow.reads == ["a"]


def test_without_host_memory_an_adapter_is_loaded_once(slow):
    """What a load gives is enough for a lease, unless it is out of date."""
    slow.name = None
    store = lj.AdapterStore(bank(), slow, host_bytes=0)
    found = store.fetch("a").result(60)
    with store.acquire_or_load("a", found) as lease:
        assert (lease.digest, slow.reads) == ("digest 1", ["a"])
    assert store.fetch("a").result(60) is None  # it is in a slot
    slow.disk.numbers["a"] = 7
    store.unload("a")
    anew = store.acquire_or_load("a", found).result(60)
    with store.acquire_or_load("a", anew) as lease:
        assert (lease.digest, slow.reads) == ("digest 7", ["a", "a"])
    store.close()


@pytest.mark.parametrize("what", ["acquire", "acquire, and again", "reload"])
def test_what_began_to_load_before_an_unload_is_not_used(slow, what):
    """Neither by those who ask later, nor by those who waited. A reload says what it found."""
    store = lj.AdapterStore(bank(), slow)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.reload if what == "reload" else store.acquire, "a")
        assert slow.begun.wait(60)
        slow.disk.numbers["a"], slow.name = 7, None
        store.unload("a")
        if what == "acquire, and again":
            assert store.acquire("a").digest == "digest 7"
        slow.go.set()
        found = waiting.result(60)
    assert found == "digest 1" if what == "reload" else found.digest == "digest 7"
    assert store.prefetch("a").result(60) == store.acquire("a").digest == "digest 7"
    assert store.counts.puts == 1
    store.close()


def test_a_reload_does_not_wait_for_a_load_that_began_before(slow):
    store = lj.AdapterStore(bank(), slow)
    first = store.prefetch("a")
    assert slow.begun.wait(60)
    slow.disk.numbers["a"], slow.name = 7, None
    assert store.reload("a") == "digest 7"
    slow.go.set()
    assert first.result(60) == "digest 1"  # what it found, which nobody gets
    assert store.acquire("a").digest == "digest 7"
    store.close()


class Compiled:
    """Programs that are compiled at once, or once `go` is set; what they were compiled for."""

    def __init__(self, *banks):
        self.found = [jax.tree.structure(bank.shapes()) for bank in banks]
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.error = None

    def compiled(self, bank):
        return jax.tree.structure(bank.shapes()) in self.found

    def compile(self, bank):
        self.begun.set()
        assert self.go.wait(60)
        if self.error is not None:
            raise self.error
        self.found.append(jax.tree.structure(bank.shapes()))


def test_leases_wait_for_programs_that_others_do_not_need(start):
    """Of two new adapters at once, the second waits for programs with both."""
    found = {
        "a": start,
        "b": stored.begun(also_train=("down/kernel",)),
        "c": stored.begun(rank=1, target="down/kernel"),
    }
    store = lj.AdapterStore(bank(), lambda name: (found[name], f"digest of {name}"))
    store.acquire("a").release()
    with store.using() as now:
        programs = Compiled(now)
    store.compile_first(programs)
    programs.go.clear()
    with ThreadPoolExecutor(2) as pool:
        new = [pool.submit(store.acquire, name) for name in "bc"]
        assert programs.begun.wait(60) and store.compiling
        with store.acquire("a") as lease:
            assert lease.digest == "digest of a"
        assert list(store.held()) == ["a"] and not any(each.done() for each in new)
        programs.go.set()
        leases = [each.result(60) for each in new]
    with store.using() as now:
        assert programs.compiled(now) and {*store.held()} == {*"abc"}
    for name, lease in zip("bc", leases, strict=True):
        assert store.unload(name)
        store.trim().result(60)
        with store.using() as kept:
            assert jax.tree.structure(kept) == jax.tree.structure(now)  # the lease needs it
        lease.release()
        store.trim().result(60)
        with store.using() as now:
            assert programs.compiled(now) and now is not kept
    store.close()


def test_programs_that_fail_leave_everything_as_it_was(start):
    found = {"a": start, "b": stored.begun(also_train=("down/kernel",))}
    store = lj.AdapterStore(bank(), lambda name: (found[name], name))
    for name in found:
        store.acquire(name).release()
    with store.using() as before:
        programs = Compiled(before)
    store.compile_first(programs)
    programs.error = RuntimeError("no room")
    assert store.unload("b") and list(store.held()) == ["a"]
    with pytest.raises(RuntimeError, match="no room"):
        store.trim().result(60)
    with store.using() as now:
        assert now is before
    store.acquire("b").release()  # it needs no programs that are not there
    assert store.unload("b")
    programs.error = None
    store.trim().result(60)
    programs.found.clear()
    programs.error = RuntimeError("no room")
    with pytest.raises(RuntimeError, match="no room"):
        store.acquire("b")
    assert list(store.held()) == ["a"]
    store.close()


def test_programs_that_nobody_puts_do_not_push_out_those_of_the_bank(start):
    found = {"a": start, "b": stored.begun(also_train=("down/kernel",))}
    for name in "cdef":
        kinds = {"target": "down/kernel", "also_train": ("up/kernel",) * (name in "df")}
        found[name] = stored.begun(method="hira" if name in "ef" else "lora", **kinds)
    store = lj.AdapterStore(bank(), lambda name: (found[name], name))
    store.acquire("a").release()
    kept = ProgramsOfBanks(object)
    with store.using() as now:
        kept.of(now)
    compile_for = lambda bank: kept.compile(bank, lambda own: None)  # noqa: E731
    store.compile_first(types.SimpleNamespace(compiled=kept.__contains__, compile=compile_for))
    for name in "bcdef":
        store.acquire_or_load(name, store.fetch(name).result(60)).result(60)
    assert now in kept and list(store.held()) == ["a"]
    store.close()


def test_the_first_put_runs_the_program_that_was_compiled_for_it(start, compilations):
    empty = bank(capacity=THREADS + 3)
    store = lj.AdapterStore(empty, lambda name: (start, name))
    empty.put(1, start, donate=True)
    with compilations() as counted:
        store.acquire("a").release()
    assert not counted
    store.close()


def test_a_lease_may_outlive_its_store(start):
    store = lj.AdapterStore(bank(), lambda name: (start, name))
    store.compile_first(Compiled(bank()))
    with store.acquire("a"):
        store.unload("a")
        store.close()
    assert not store.filled


def test_answers_while_others_are_put_reloaded_and_evicted(start):
    """Each answer is that of the version that the lease names.

    Files that have changed are refused until the name is reloaded or unloaded, and only then.
    """
    names = [f"adapter {number}" for number in range(3 * THREADS)]
    counting, begun, ended = threading.Lock(), Counter(), Counter()  # changes of each name
    starts = start, stored.begun(also_train=("down/kernel",))
    numbers = {name: number for number, name in enumerate(names)}
    disks = [stored.Disk(each, numbers) for each in starts]
    size = bank().prepare(start).nbytes
    programs, apply = Compiled(bank()), jax.jit(lj.Bank.apply)
    read = lambda name: disks[numbers[name] % 5 == 4](name)  # noqa: E731
    store = lj.AdapterStore(bank(), read, host_bytes=4 * size)
    store.compile_first(programs)
    barrier = threading.Barrier(THREADS)

    def work(seed):
        random, found = np.random.default_rng(seed), []
        barrier.wait(60)
        for turn in range(25):
            name = names[random.integers(len(names))]
            before = ended[name]
            try:
                lease = store.acquire(name)
            except ValueError as error:
                assert "have changed since it was loaded" in str(error)
                assert begun[name] > before
            else:
                with lease, store.using() as now:
                    assert programs.compiled(now)
                    y = apply(now, jnp.full(2, lease.slot), stored.X)
                found.append((lease.digest, y))  # it may still be computed
            if turn % 5 == 4:
                with counting:
                    begun[name] += 1
                    numbers[name] += 101
                (store.reload if seed % 2 else store.unload)(name)
                with counting:
                    ended[name] += 1
        return [(digest, np.asarray(y)) for digest, y in found]

    with ThreadPoolExecutor(THREADS) as pool:
        answers = [each for done in pool.map(work, range(THREADS)) for each in done]
    expected = {
        digest: stored.answer(stored.numbered(start, int(digest.removeprefix("digest "))))
        for digest in {digest for digest, _ in answers}
    }
    for digest, y in answers:
        np.testing.assert_allclose(y, expected[digest], rtol=1e-5, atol=1e-5)
    assert store.counts.evictions > THREADS
    store.close()
