"""Figures as files: three formats, the same bytes each time, and the colours of a page."""

import re

from matplotlib.figure import Figure

from experiments.reports.figures import style
from experiments.reports.figures.style import BLUE, GREY, INK, PAPER


def figure():
    made = Figure(figsize=(2, 2))
    axes = made.add_subplot()
    axes.plot([0, 1], [0, 1], "o-", color=BLUE, markeredgecolor=PAPER)
    axes.axhline(0.5, color=INK)
    axes.grid(color=GREY)
    axes.set_xlabel("a <b> & $c$")
    return made


def test_a_figure_is_written_as_png_svg_and_pdf_with_the_same_bytes_each_time(tmp_path):
    first = style.write_picture(figure(), tmp_path / "new" / "a", "x")
    again = style.write_picture(figure(), tmp_path / "b", "x")
    assert [path.name for path in first] == ["x.png", "x.svg", "x.pdf"]
    begins = [path.read_bytes()[:4] for path in first]
    assert begins == [b"\x89PNG", b"<?xm", b"%PDF"]
    for one, two in zip(first, again, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert BLUE in first[1].read_text()  # a file of its own has plain colours


def test_an_element_of_a_page_takes_the_page_s_colours():
    drawn = style.svg(figure(), "p1", 'a "name"')
    assert drawn.startswith('<svg role="img" fill="currentColor" aria-label="a &quot;name&quot;"')
    for name in ("currentColor", "var(--blue)", "var(--grey)", "var(--paper)"):
        assert name in drawn
    assert not re.search(r"(?:fill|stroke): ?#", drawn)
    ids = re.findall(r' id="([^"]+)"', drawn)
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', drawn)
    assert ids and all(each.startswith("p1-") for each in ids)
    assert {one or two for one, two in used} <= set(ids)
