"""Adapters beyond a bank's slots: who is where, after any order of uses."""

import collections

import jax
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from support import stored_adapters as stored

import lora_jax as lj

NAMES = "abcdefg"
CHANGED = "changed"
SLOTS, ROOM = 3, 2
"""Of the bank, and adapters in host memory."""


@pytest.fixture(scope="module")
def start():
    return stored.begun()


def bank(**options):
    return lj.Bank(stored.forward, stored.PARAMS, **{"capacity": SLOTS, "max_rank": 2, **options})


def disk(start):
    return stored.Disk(start, {name: number for number, name in enumerate(NAMES)})


class Model:
    """What a store should do, with lists and dicts: the last element was used last."""

    def __init__(self):
        self.disk = {name: number for number, name in enumerate(NAMES)}
        self.host, self.slots, self.loads = collections.OrderedDict(), [], 0
        self.pinned = {}

    def current(self, name):
        return next((e for e in self.slots if e["name"] == name and e["current"]), None)

    def used(self, entry):
        self.slots.remove(entry)
        self.slots.append(entry)

    def read(self, name, anew=False):
        """Whether what is there now may be used."""
        self.loads += 1
        if not anew and self.pinned.get(name, self.disk[name]) != self.disk[name]:
            return False
        self.pinned[name] = self.disk[name]
        self.keep(name, self.disk[name])
        return True

    def keep(self, name, number):
        self.host.pop(name, None)
        self.host[name] = number
        while len(self.host) > ROOM:
            self.host.popitem(last=False)

    def acquire(self, name):
        """The entry that is used; None if there is no slot, CHANGED if its files are others."""
        if (entry := self.current(name)) is None:
            if name not in self.host and not self.read(name):
                return CHANGED
            self.keep(name, self.host[name])
            idle = [e for e in self.slots if not e["users"]]
            if len(self.slots) == SLOTS and not idle:
                return None
            if len(self.slots) == SLOTS:
                self.slots.remove(idle[0])
            entry = {"name": name, "number": self.host[name], "users": 0, "current": True}
            self.slots.append(entry)
        entry["users"] += 1
        self.used(entry)
        return entry

    def release(self, entry):
        entry["users"] -= 1
        self.used(entry)
        self.clear()

    def retire(self, name):
        if (entry := self.current(name)) is not None:
            entry["current"] = False
        self.clear()

    def clear(self):
        self.slots = [e for e in self.slots if e["current"] or e["users"]]

    def held(self):
        return [(e["name"], f"digest {e['number']}") for e in self.slots if e["current"]]


STEPS = st.tuples(
    st.sampled_from(["acquire"] * 4 + ["release"] * 3 + ["change", "reload", "unload"]),
    st.integers(0, len(NAMES) - 1),
)


@settings(max_examples=60)
@given(st.lists(STEPS, min_size=10, max_size=50))
def test_any_order_of_uses(start, steps):
    """Against lists and dicts: digests, evictions, loads, and the numbers in the bank's slots."""
    size = bank().prepare(start).nbytes
    files, model, leases = disk(start), Model(), []
    store = lj.AdapterStore(bank(), files, host_bytes=ROOM * size)
    for kind, number in steps:
        name = NAMES[number]
        if kind == "acquire":
            if (entry := model.acquire(name)) == CHANGED:
                with pytest.raises(ValueError, match=f"files of '{name}' have changed .* reload"):
                    store.acquire(name)
            elif entry is None:
                with pytest.raises(lj.NoSlotFree, match="all 3 slots of the bank are in use"):
                    store.acquire(name)
            else:
                leases.append((store.acquire(name), entry))
        elif kind == "release" and leases:
            lease, entry = leases.pop(number % len(leases))
            lease.release()
            lease.release()  # the second does nothing
            model.release(entry)
        elif kind == "change":  # on disk, and nobody says so
            model.disk[name] = files.numbers[name] = len(NAMES) + model.disk[name]
        elif kind == "reload":
            model.read(name, anew=True)
            model.retire(name)
            assert store.reload(name) == f"digest {model.disk[name]}"
        elif kind == "unload":
            assert store.unload(name) == bool(model.current(name) or name in model.host)
            model.retire(name)
            model.host.pop(name, None)
            model.pinned.pop(name, None)
        assert list(store.held().items()) == model.held()
        assert store.filled == len(model.slots)
        assert store.counts.loads == model.loads
        assert store.host_nbytes == len(model.host) * size
        with store.using() as now:
            slots = {lease.slot: entry for lease, entry in leases}
            a = np.asarray(now.held.part("trainable", "up/kernel")["0/a"]) if leases else None
        for lease, entry in leases:
            assert slots[lease.slot] is entry  # nobody else has the slot
            assert (lease.name, lease.digest) == (entry["name"], f"digest {entry['number']}")
            wanted = stored.numbered(start, entry["number"])[0]["adapters"]["up/kernel"]["a"]
            np.testing.assert_array_equal(a[lease.slot], wanted)
    store.close()


def test_a_put_takes_the_arrays_of_a_bank_that_nobody_has(start):
    """And leaves them to those who do."""
    store = lj.AdapterStore(bank(), disk(start))
    store.acquire("a").release()
    with store.using() as passed:
        pass
    store.acquire("b").release()
    gone = passed.held.part("trainable", "up/kernel")["0/a"]
    assert gone.is_deleted()
    kept = store.bank
    before = jax.tree.map(np.asarray, kept.held.arrays)
    with store.using():
        store.acquire("c").release()
    with store.using() as read:
        store.acquire("d").release()
        inside = jax.tree.map(np.asarray, read.held.arrays)
    assert jax.tree.leaves(inside)
    jax.tree.map(np.testing.assert_array_equal, kept.held.arrays, before)


def test_what_does_not_fit_is_said_and_changes_nothing(start):
    found = {
        "alice": start,
        "large": stored.begun(rank=3),
    }

    def load(name):
        if name not in found:
            raise lj.UnknownAdapterError(name, found)
        return found[name], name

    store = lj.AdapterStore(bank(), load)
    store.acquire("alice").release()
    before = store.bank
    wrong = {
        "alise": (LookupError, "there is no adapter 'alise'; nearest: 'alice'"),
        "large": (ValueError, "'up/kernel' has rank 3, and the bank max_rank=2: make it larger"),
    }
    for name, (kind, said) in wrong.items():
        for use in (store.acquire, store.reload, lambda name: store.prefetch(name).result()):
            with pytest.raises(kind, match=said):
                use(name)
    assert store.bank is before
    found["alice"] = found["large"]  # a version that does not fit leaves the old one
    with pytest.raises(ValueError, match="has rank 3"):
        store.reload("alice")
    assert store.held() == {"alice": "alice"}
    with pytest.raises(ValueError, match="host_bytes must not be negative, got -1"):
        lj.AdapterStore(bank(), load, host_bytes=-1)


def test_a_prepared_adapter_is_put_like_the_adapter_itself(start):
    adapter = stored.numbered(start, 5)
    ready = bank().prepare(adapter)
    put, same = bank().put(2, ready), bank().put(2, adapter)
    jax.tree.map(np.testing.assert_array_equal, put.held.arrays, same.held.arrays)
    with pytest.raises(ValueError, match="prepared for max_rank=2, and the bank has max_rank=4"):
        bank(max_rank=4).put(1, ready)
    moved = {**stored.PARAMS, "down/kernel": stored.PARAMS["down/kernel"] + 1}
    with pytest.raises(ValueError, match="on another base: 'down/kernel' has other numbers"):
        lj.Bank(stored.forward, moved, max_rank=2).put(1, ready)
