"""Views against an independent truth: the same operations on an array of indices."""

import itertools
import math

import numpy as np
from hypothesis import given, settings, strategies as st

from lora_jax.transform.views import Atom, View, arrange, canonical

SIZES = (1, 2, 3, 4, 6)


def divisions(size: int, count: int) -> list[tuple[int, ...]]:
    """All shapes of `count` axes with `size` entries."""
    if count == 1:
        return [(size,)]
    return [
        (first, *rest)
        for first in range(1, size + 1)
        if size % first == 0
        for rest in divisions(size // first, count - 1)
    ]


@st.composite
def programs(draw):
    """A shape, and some transpositions and reshapes."""
    shape = tuple(draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=3)))
    now, steps = shape, []
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            order = tuple(draw(st.permutations(range(len(now)))))
            now = tuple(now[dim] for dim in order)
            steps.append(("transpose", order))
        else:
            now = draw(st.sampled_from(divisions(math.prod(now), draw(st.integers(1, 4)))))
            steps.append(("reshape", now))
    return shape, steps


def run(array, steps):
    for name, argument in steps:
        array = getattr(array, name)(argument)
    return array


@settings(max_examples=400)
@given(programs())
def test_a_view_says_where_every_entry_went(program):
    shape, steps = program
    view = run_view(View.of(shape), steps)
    if view is None:
        return
    truth = run(np.arange(math.prod(shape)).reshape(shape), steps)
    assert view.shape == truth.shape
    for place in itertools.product(*map(range, truth.shape)):
        original = [0] * len(shape)
        for axis, index in zip(view.axes, place, strict=True):
            for atom in reversed(axis):
                index, digit = divmod(index, atom.size)
                original[atom.axis] += digit * atom.stride
        assert truth[place] == np.ravel_multi_index(original, shape)


@settings(max_examples=200)
@given(programs(), st.randoms())
def test_arrange_lays_atoms_out_as_the_program_did(program, random):
    shape, steps = program
    view = run_view(View.of(shape), steps)
    if view is None:
        return
    atoms = [atom for axis in view.axes for atom in axis]
    original = np.arange(math.prod(shape))
    truth = run(original.reshape(shape), steps)
    assert np.array_equal(arrange(original, canonical(view.atoms), view.axes), truth)
    random.shuffle(atoms)
    shuffled = arrange(truth, view.atoms, tuple((atom,) for atom in atoms))
    assert np.array_equal(arrange(shuffled, tuple(atoms), view.axes), truth)
    stacked = arrange(np.stack([shuffled, -shuffled]), tuple(atoms), view.axes, keep=1)
    assert np.array_equal(stacked, np.stack([truth, -truth]))


def run_view(view: View | None, steps) -> View | None:
    for name, argument in steps:
        view = view and getattr(view, name)(argument)
    return view


def test_reshape_gives_up_only_where_an_axis_ends_inside_an_atom():
    assert View.of((6, 4)).reshape((3, 2, 4)) is not None
    assert View.of((6, 4)).reshape((24,)) is not None
    assert View.of((6, 4)).reshape((12, 2)) is not None
    assert View.of((6, 4)).reshape((4, 6)) is None
    assert View.of((6, 4)).reshape((8, 3)) is None
    assert View.of((0, 4)).reshape((4, 0)) is None


def test_atoms_of_size_one_do_not_get_in_the_way():
    assert View.of((1, 4, 6)).reshape((4, 6)).axes == View.of((1, 4, 6)).axes[1:]
    assert View.of((4, 1, 6)).reshape((1, 24, 1)).axes == ((), (Atom(0, 1, 4), Atom(2, 1, 6)), ())
    assert View.of((1, 1)).reshape(()).axes == ()
