"""Write a figure as files, or as an SVG element of a page; the same figure has the same bytes."""

import html
import io
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from experiments.figures.style import VARIABLES

FORMATS = ("png", "svg", "pdf")


def write(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write `<stem>.png`, `.svg` and `.pdf` into a folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.{form}" for form in FORMATS]
    for path, form in zip(paths, FORMATS, strict=True):
        path.write_bytes(_bytes(figure, form, stem))
    return paths


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
            dpi=150,
            transparent=transparent,
            metadata=dict.fromkeys(unsaid[form]),
        )
    return written.getvalue()
