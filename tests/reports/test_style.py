"""Colours of figures: told apart by readers with any colour vision, and from the page."""

import itertools

import numpy as np
import pytest

from experiments.reports.figures.style import PALETTE, shortened, styles, width

# Machado, Oliveira and Fernandes, 2009 (doi 10.1109/TVCG.2009.113), severity 1, on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = XYZ.sum(1)


def linear(colour):
    """Linear RGB of `#rrggbb` (IEC 61966-2-1)."""
    part = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE L*a*b* of linear RGB."""
    ratio = XYZ @ np.clip(rgb, 0, 1) / WHITE
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
def test_every_reader_can_tell_two_colours_apart(vision):
    """A distance of 2.3 is just noticeable side by side; on small marks it takes far more."""
    seen = [lab(np.array(VISIONS[vision]) @ linear(colour)) for colour in PALETTE]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 20


def test_colours_have_the_contrast_that_graphics_need():
    """3 to 1 on white (WCAG 2.1, 1.4.11)."""
    for colour in PALETTE:
        luminance = XYZ[1] @ linear(colour)
        assert 1.05 / (luminance + 0.05) >= 3


def test_looks_do_not_repeat():
    looks = list(itertools.islice(styles(), 40))
    assert len({colour for _, colour, _ in looks[:8]}) == 8
    assert len({(colour, line) for _, colour, line in looks}) == 40


def test_a_long_name_is_cut_to_its_width():
    assert shortened("LoRA", 8, 100) == "LoRA"
    cut = shortened("a name that is far too long", 8, 60)
    assert cut.endswith("…") and cut[:-1] in "a name that is far too long"
    assert 40 < width(cut, 8) <= 60
