"""Searches for the smallest topology and the largest batch, with a formula as the compiler."""

import dataclasses

import pytest

from experiments.planning import memory_fit
from experiments.planning.memory_fit import Arrays, Fit
from experiments.planning.topologies import GIB, topology


@pytest.fixture(autouse=True)
def without_libtpu(monkeypatch):
    monkeypatch.setattr("experiments.planning.topologies.has_libtpu", lambda: False)


class Compiler:
    """`fit` by a formula, `memory(devices, rows)` in GiB of a device, that notes what it is asked.

    Where `refuses`, a program that does not fit has no size, as with TPUs.
    """

    def __init__(self, memory, refuses=False, arrays=0.0):
        self.memory, self.refuses, self.arrays, self.asked = memory, refuses, arrays, []

    def fit(self, config, chosen, mesh, rows=None):
        held = int(self.arrays * GIB / chosen.devices)
        total = int(self.memory(chosen.devices, rows) * GIB)
        found = Fit(chosen, mesh, rows, 128, Arrays(held, 0, 0, 0), refused="no")
        if found.hopeless:
            return found
        self.asked.append((str(chosen), rows))
        if self.refuses and total > chosen.capacity:
            return found
        return dataclasses.replace(found, temporaries=total - held)


@pytest.fixture
def search(monkeypatch):
    """A compiler in the place of `fit`, and what is known of the topology that is asked for."""

    def make(compiler, name, rows, mesh=None):
        chosen = topology(name)
        monkeypatch.setattr(memory_fit, "fit", compiler.fit)
        known = compiler.fit({}, chosen, mesh or (1, chosen.devices, 1), rows)
        compiler.asked.clear()
        return known

    return make


def said(_):
    """Nobody listens."""


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize(
    ("whole", "smallest"),
    [(10, "v5e:1x1"), (50, "v5e:2x2"), (100, "v5e:2x4"), (250, "v5e:4x4"), (3000, "v5e:16x16")],
)
def test_the_smallest_topology(search, monkeypatch, whole, smallest, refuses):
    monkeypatch.setattr(memory_fit, "MOST_SIMULATED", 256)
    compiler = Compiler(lambda devices, rows: whole / devices, refuses)
    found = memory_fit.smallest({}, search(compiler, "v5e:4x4", 1), said)
    assert str(found.topology) == smallest
    assert len({name for name, _ in compiler.asked}) == len(compiler.asked)
    assert ("v5e:4x4", 1) not in compiler.asked  # which is known


def test_what_cannot_fit_is_not_compiled(search):
    compiler = Compiler(lambda devices, rows: 140 / devices, arrays=130)
    found = memory_fit.smallest({}, search(compiler, "v5e:4x4", 1), said)
    assert str(found.topology) == "v5e:4x4"
    assert not compiler.asked


def test_no_topology(search):
    compiler = Compiler(lambda devices, rows: 16, arrays=1)
    assert memory_fit.smallest({}, search(compiler, "v5e:2x2", 1), said) is None
    assert len(compiler.asked) == 5  # of at most 64 devices, v5e:2x2 aside


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("most", [1, 2, 3, 7, 29, 64, 1000])
@pytest.mark.parametrize("begin", [1, 4])
def test_the_largest_batch(search, begin, most, refuses):
    """With 4 GiB of arrays and a line through `most` rows."""
    row = (15.75 - 4) / (most + 0.5)
    compiler = Compiler(lambda _, rows: 4 + row * rows, refuses)
    best, sure = memory_fit.largest_batch({}, search(compiler, "v5e:1x1", begin), said)
    assert best.rows == most and sure
    assert len(compiler.asked) <= 5


def test_memory_that_is_no_line(search):
    """It grows by steps of 8 rows, and faster and faster."""
    compiler = Compiler(lambda _, rows: 4 + (8 * -(-rows // 8)) ** 1.2 / 10, True)
    best, sure = memory_fit.largest_batch({}, search(compiler, "v5e:1x1", 1), said)
    assert best.fits and best.rows <= 48 and len(compiler.asked) <= memory_fit.TRIES
    if sure:
        assert best.rows == 48
    assert best.rows >= 24


def test_no_batch(search):
    compiler = Compiler(lambda _, rows: 16 + rows, True)
    assert memory_fit.largest_batch({}, search(compiler, "v5e:1x1", 1), said) == (None, True)
    assert not compiler.asked
    best, _ = memory_fit.largest_batch({}, search(compiler, "v5e:1x1", 4), said)
    assert best is None
    assert [rows for _, rows in compiler.asked] == [2, 1]


def test_a_batch_that_never_ends(search):
    compiler = Compiler(lambda _, rows: 4.0)
    best, sure = memory_fit.largest_batch({}, search(compiler, "v5e:1x1", 1), said)
    assert best.rows == memory_fit.MOST_ROWS and not sure
    assert len(compiler.asked) <= memory_fit.TRIES


def test_who_waits_is_told(search):
    heard = []
    compiler = Compiler(lambda devices, rows: 100 / devices + rows)
    known = search(compiler, "v5e:4x4", 1)
    memory_fit.smallest({}, known, heard.append)
    memory_fit.largest_batch({}, known, heard.append)
    assert heard[:2] == ["compiling for v5e:1x1", "compiling for v5e:2x2"]
    assert "compiling with 2 rows a shard" in heard
    assert len(heard) == len(compiler.asked)
