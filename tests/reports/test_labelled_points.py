"""Points with names: every name is there, and none lies on another."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from scipy import optimize

from experiments.reports.figures.labelled_points import GAP, Point, draw, spread

SAME = [Point(f"method {n}", 331_776, 27 + n / 10, n == 3) for n in range(9)]
POINTS = [
    *SAME,
    Point("head alone", 0, 9.6),
    Point("full", 22_566_146, 32.4),
    Point("VeRA with a very long name that no column could take", 29_952, 23.1),
    Point("_$x_", 25_728, 1.4),
]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=7))
def test_places_are_the_nearest_that_are_far_enough_apart(targets):
    """Least squares of all places in the order of the targets, by SciPy."""
    places = np.array(spread(targets, 10, 1e9))
    order = np.argsort(targets, kind="stable")
    wanted = np.array(targets, float)[order]
    assert (np.diff(places[order]) >= 10 - 1e-9).all()
    steps = np.tril(np.ones((len(wanted), len(wanted))))  # a first place, then gaps
    lower = np.r_[-1e3, np.full(len(wanted) - 1, 10.0)]
    best = optimize.lsq_linear(steps, wanted, (lower, np.full(len(wanted), np.inf)), tol=1e-12)
    got = 0.5 * ((np.maximum(places[order], 0) - wanted) ** 2).sum()
    if places.min() > 0:  # none was kept from leaving the range
        assert got == pytest.approx(best.cost, abs=1e-4)


def test_places_stay_in_their_range_if_they_fit():
    assert spread([0, 0, 0], 10, 100) == [0, 10, 20]
    assert spread([100, 100], 10, 100) == [90, 100]
    assert spread([50, 49], 10, 5) == [7.5, -2.5]  # two do not fit into 5


def test_no_name_lies_on_another_or_on_the_axes():
    figure = draw(POINTS, title="t", axis="parameters", scores="score (%)", front=[9, 11, 10])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    renderer = canvas.get_renderer()
    assert axes.get_xscale() == "log"
    boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]  # without its line
    assert len(boxes) == len(POINTS)
    for one, two in itertools.combinations(boxes, 2):
        assert not one.overlaps(two)
    for box in boxes:
        assert box.x0 >= axes.bbox.x1 and box.x1 <= figure.bbox.x1
        assert box.y0 >= 0 and box.y1 <= figure.bbox.y1
    heights = sorted(box.y0 for box in boxes)
    assert min(np.diff(heights)) >= GAP / 72 * figure.dpi - 1e-6


def test_points_are_where_they_belong():
    (axes,) = draw(POINTS, title="t", axis="x", scores="y", front=[9, 11, 10], bar=2.0).axes
    drawn = {line.get_label(): line for line in axes.lines}
    assert list(drawn["full"].get_xydata()[0]) == [22_566_146, 32.4]
    assert drawn["method 3"].get_marker() == "D" and drawn["method 4"].get_marker() == "o"
    across = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in across] == [
        9.6
    ]  # no adapter: a line, as log(0) is none
    front = drawn["Pareto front"]
    assert list(front.get_xdata()) == [29_952, 22_566_146]
    (container,) = axes.containers
    low, high = container.lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(4.0)


@pytest.mark.parametrize(("score", "marker"), [(10.0, "v"), (200.0, "^")])
def test_a_point_far_from_all_others_leaves_them_room(score, marker):
    """It is an arrow at the edge, its name has its score, and nothing lies on the reference."""
    points = [*SAME, Point("far", 300_000, score)]
    (axes,) = draw(points, title="t", axis="x", scores="y", bar=0.1).axes
    drawn = {line.get_label(): line for line in axes.lines}
    assert drawn["far"].get_marker() == marker and f"far ({score})" in [t._text for t in axes.texts]
    low, high = axes.get_ylim()
    assert 26 < low < 27 and 27.8 < high < 29
    reference = drawn.pop("method 3")
    assert reference.zorder > max(line.zorder for line in drawn.values())


def test_the_typical_interval_is_drawn_however_long_it_is():
    (axes,) = draw(SAME, title="t", axis="x", scores="y", bar=30.0).axes
    ends = axes.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert axes.get_ylim()[0] < ends[0] and ends[1] < axes.get_ylim()[1]
