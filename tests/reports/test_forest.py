"""Forest plots: where lines are, and what is said of those that are beyond the axis."""

import pytest
from matplotlib.patches import Polygon, Rectangle

from experiments.reports.figures import forest
from experiments.reports.figures.forest import Line
from experiments.reports.figures.style import BLUE, GREY, ORANGE

LINES = [
    Line("a", 2.0, 1.0, 3.0, "better"),
    Line("b", 0.1, -0.4, 0.6, "equivalent"),
    Line("c", -0.04, None, None, "undecided"),
    Line("d", -0.5, -2.0, 1.0, "undecided"),
    Line("e", -30.0, -33.0, -27.0, "worse"),
]


def test_a_line_is_at_its_mean_between_the_ends_of_its_interval():
    figure = forest.forest(LINES, title="t", axis="points", margin=1.0)
    (axes,) = figure.axes
    means = {line.get_ydata()[0]: line for line in axes.lines[1:]}  # the first is zero
    assert [means[at].get_xdata()[0] for at in range(4)] == [2.0, 0.1, -0.04, -0.5]
    bars = [tuple(bar.get_segments()[0][:, 0]) for bar in axes.collections]
    assert bars == [(1.0, 3.0), (-0.4, 0.6), (-2.0, 1.0)]  # all of the last one is beyond
    assert [text.get_text() for text in axes.get_yticklabels()] == list("abcde")
    assert (means[0].get_marker(), means[0].get_color()) == ("^", BLUE)
    assert (means[2].get_marker(), means[2].get_color()) == ("o", GREY)
    numbers = [text.get_text() for text in axes.texts]
    assert numbers[:3] == ["+2.00 [+1.00, +3.00]", "+0.10 [-0.40, +0.60]", "-0.04"]
    (band,) = (each for each in axes.patches if isinstance(each, (Rectangle, Polygon)))
    assert sorted({x for x, _ in band.get_path().vertices}) in ([-1.0, 1.0], [0.0, 1.0])
    keys = [text.get_text() for text in figure.legends[0].get_texts()]
    assert keys == ["better", "worse", "equivalent", "undecided", "margin ±1"]


def test_a_line_far_from_all_others_is_an_arrow_at_the_edge():
    ends = forest.shown(LINES, 1.0)
    assert ends == pytest.approx((-2.25, 3.25))  # 5% more than from -2 to 3
    assert forest.beyond(LINES, ends) and not forest.beyond(LINES[:4], ends)
    (axes,) = forest.forest(LINES, title="t", axis="points", margin=1.0).axes
    arrow = next(line for line in axes.lines[1:] if line.get_ydata()[0] == 4)
    assert arrow.get_marker() == "<" and ends[0] < arrow.get_xdata()[0] < -2
    assert axes.texts[4].get_text() == "-30.00 [-33.00, -27.00]"
    assert arrow.get_markerfacecolor() == arrow.get_color() == ORANGE
    wide = [*LINES[:4], Line("f", 2.9, None, None), Line("g", -8.0, -20.0, 4.0)]
    wide[3] = Line("d", -0.5, -9.0, 1.0)  # so wide that it shows the mean of one that is far
    assert forest.shown(wide)[0] < -20
    two = [Line("a", 0.0, -1.0, 1.0), Line("b", -30.0, None, None)]
    assert not forest.beyond(two, forest.shown(two))  # neither is far from the other's median


def test_only_a_verdict_is_filled_and_the_part_of_a_bar_on_the_axis_is_drawn():
    lines = [
        Line("reference", 0.0, None, None),
        Line("left", -13.0, -35.0, 8.0, "undecided"),
        Line("right", 13.0, 1.0, 25.0, "better"),
        Line("untested", 9.0, 5.0, 13.0),
    ]
    (axes,) = forest.forest(lines, title="t", axis="points", limits=(-6.0, 2.0)).axes
    drawn = {line.get_ydata()[0]: line for line in axes.lines[1:]}
    assert [drawn[at].get_marker() for at in range(4)] == ["|", "<", ">", ">"]
    filled = [drawn[at].get_markerfacecolor() == drawn[at].get_color() for at in range(4)]
    assert filled == [False, False, True, False]
    bars = [tuple(bar.get_segments()[0][:, 0]) for bar in axes.collections]
    assert bars == [(-6.0, 2.0), (1.0, 2.0)]
