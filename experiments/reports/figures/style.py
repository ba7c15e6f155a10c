"""How all figures look, and how they become files and parts of a page.

Eight colours differ for readers with any common colour blindness (a test computes it), and from a
white page by a contrast of 3. A figure with more than eight methods names them beside their points,
or gives each axes of its own; where a legend must do, colours return with other lines and markers.
Figures on a page take the page's own colours instead (`VARIABLES`), which differ in dark mode.
"""

import html
import io
import re
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

PALETTE = (
    "#4c99e5",
    "#804000",
    "#e50073",
    "#260099",
    "#999900",
    "#194d33",
    "#9933ff",
    "#602673",
)
MARKERS = "osD^vP*Xp<>h"
LINES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))

INK, PAPER, GREY = "#000000", "#fefefe", "#7f7f7f"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#008a64"
VARIABLES = {
    INK: "currentColor",
    PAPER: "var(--paper)",
    GREY: "var(--grey)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
}
"""What colours are called in the style of a page; no figure may use other ones there."""

SMALL, NORMAL = 8.0, 9.0
"""Sizes of letters in points: readable where a page is as wide as a telephone."""


def styles() -> Iterator[tuple[str, str, Any]]:
    """Endless triples of marker, colour and line; no pair of colour and line in the first 40."""
    lines = [line for line in LINES for _ in PALETTE]
    return zip(cycle(MARKERS), cycle(PALETTE), cycle(lines), strict=False)


def plain(text: str) -> str:
    """Escape a text so that matplotlib takes no `$` for a formula and hides no label after `_`."""
    return text.replace("$", r"\$").lstrip("_")


def width(text: str, size: float) -> float:
    """The width of a text in points, in matplotlib's default font."""
    if not plain(text).strip():
        return 0.0  # matplotlib has no path of spaces
    return float(TextPath((0, 0), plain(text), size=size).get_extents().width)


def shortened(text: str, size: float, most: float) -> str:
    """A text that is at most so many points wide, with an ellipsis where it was cut."""
    if width(text, size) <= most:
        return text
    while text and width(f"{text}…", size) > most:
        text = text[:-1]
    return f"{text.rstrip()}…"


DPI = 150
FORMATS = ("png", "svg", "pdf")


def write_picture(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write `<stem>.png`, `.svg` and `.pdf` into a folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.{form}" for form in FORMATS]
    for path, form in zip(paths, FORMATS, strict=True):
        path.write_bytes(_bytes(figure, form, stem))
    return paths


def write_below_one_another(figures: Sequence[Figure], path: Path) -> None:
    """Write a PNG of several figures, and create its folder if needed."""
    drawn = []
    for figure in figures:
        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(DPI)
        canvas.draw()
        drawn.append(np.asarray(canvas.buffer_rgba()))
    width = max(each.shape[1] for each in drawn)
    wide = [((0, 0), (0, width - each.shape[1]), (0, 0)) for each in drawn]
    white = [np.pad(*each, constant_values=255) for each in zip(drawn, wide, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.image.imsave(path, np.concatenate(white))


def svg(figure: Figure, salt: str, label: str) -> str:
    """A figure as an SVG element without background, in the colours of its page (`VARIABLES`).

    Args:
      salt: a text that is different for each picture of a page, to make element ids distinct.
      label: a description for screen readers.
    """
    drawn = _bytes(figure, "svg", salt, transparent=True).decode()
    drawn = drawn[drawn.index("<svg") :]
    for attribute in ('id="', 'xlink:href="#', "url(#"):
        drawn = drawn.replace(attribute, f"{attribute}{salt}-")
    drawn = re.sub(r"#[0-9a-f]{6}\b", lambda found: VARIABLES.get(found[0], found[0]), drawn)
    named = f'<svg role="img" fill="currentColor" aria-label="{html.escape(label)}"'
    return drawn.replace("<svg", named, 1)


def _bytes(figure: Figure, form: str, salt: str, transparent: bool = False) -> bytes:
    """The figure in a format, with letters as paths, and nothing that says when or by what."""
    unsaid = {
        "png": ("Software",),
        "svg": ("Creator", "Date", "Format", "Type"),
        "pdf": ("Creator", "Producer", "CreationDate"),
    }
    written = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "path"}):
        figure.savefig(
            written,
            format=form,
            dpi=DPI,
            transparent=transparent,
            metadata=dict.fromkeys(unsaid[form]),
        )
    return written.getvalue()
