"""Curves in axes of their own: whose is in front, and which point is chosen."""

import numpy as np

from experiments.reports.figures.curves import Curve, draw_curves
from experiments.reports.figures.style import BLUE, GREY

NAN = np.nan
CURVES = [
    Curve(f"m{n}", [(1e-4, n, NAN), (1e-3, n + 2.0, 0.5), (1e-2, n + 1.0, NAN)], chosen)
    for n, chosen in enumerate((1e-3, 1e-2, None, 1e-4))
]


def test_each_curve_is_in_front_of_all_others_once():
    figure = draw_curves(CURVES, title="t", axis="rate", scores="score")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["m0", "m1", "m2", "m3"]
    for number, axes in enumerate(shown):
        behind = [line for line in axes.lines if line.get_color() == GREY]
        (front,) = (line for line in axes.lines if line.get_label() == f"m{number}" or
                    (line.get_color() == BLUE and line.get_linestyle() == "-"))  # fmt: skip
        assert len(behind) == 3 and list(front.get_ydata()) == [number, number + 2, number + 1]
        rings = [line for line in axes.lines if line.get_markersize() == 8]
        chosen = CURVES[number].chosen
        assert [ring.get_xdata()[0] for ring in rings] == [chosen] * (chosen is not None)
    assert len({tuple(axes.get_xlim()) + tuple(axes.get_ylim()) for axes in shown}) == 1
