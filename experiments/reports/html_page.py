"""Write a report as one HTML page without other files: scrolling tables and embedded pictures."""

import dataclasses
import html
import io
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from experiments.tables.text_formats import Sheet, html_rows

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1240px;
  padding: 0 1rem 3rem; color: #1b1f24; background: #fff; }
h1 { font-size: 1.6rem; margin: 1.2rem 0 .6rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .6rem; }
h1, h2, h3, p, li, figcaption { overflow-wrap: anywhere; }
ul.warnings { background: #fff6df; border-left: 4px solid #d39e00; margin: 1rem 0;
  padding: .6rem 1rem .6rem 2rem; }
.scroll { overflow-x: auto; margin: .4rem 0 1.4rem; }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
h3 { font-size: .95rem; margin: 1.2rem 0 0; }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid #e3e6ea; }
thead th { border-top: 2px solid #1b1f24; border-bottom: 1px solid #1b1f24;
  vertical-align: bottom; }
tbody th { font-weight: 500; position: sticky; left: 0; background: #fff; }
tbody th { min-width: 5.5rem; max-width: 9rem; white-space: normal; }
tbody tr:hover > * { background: #f4f6f8; }
.figures { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
figure { margin: 0; } figure svg { width: 100%; height: auto; max-width: 600px; }
figcaption { font-size: .875rem; font-weight: 600; }
.notes { color: #49525c; font-size: .875rem; max-width: 60rem; }
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of the page: its heading, warnings and tables."""

    title: str
    warnings: Sequence[str]
    sheets: Sequence[Sheet]


def page(
    title: str,
    sections: Sequence[Section],
    figures: Sequence[Mapping[str, Figure]],
    notes: Sequence[str],
) -> str:
    """The whole HTML page.

    Args:
      figures: the pictures of the first sections, by caption.
    """
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
    ]
    for number, section in enumerate(sections):
        lines.append(f"<section><h2>{html.escape(section.title)}</h2>")
        if section.warnings:
            items = "".join(f"<li>{html.escape(text)}</li>" for text in section.warnings)
            lines.append(f'<ul class="warnings">{items}</ul>')
        lines += [_table(sheet) for sheet in section.sheets]
        if number < len(figures):
            lines.append('<div class="figures">')
            for index, (caption, figure) in enumerate(figures[number].items()):
                drawn = svg(figure, f"p{number}f{index}", caption)
                said = f"<figcaption>{html.escape(caption)}</figcaption>"
                lines += [f"<figure>{drawn}{said}", "</figure>"]
            lines.append("</div>")
        lines.append("</section>")
    lines += [f'<p class="notes">{html.escape(note)}</p>' for note in notes]
    return "\n".join([*lines, "</body></html>"]) + "\n"


def _table(sheet: Sheet) -> str:
    name = html.escape(sheet.title)
    heads = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in sheet.heads)
    lines = (
        f"<h3>{name}</h3>",  # not a caption, which would scroll with the table
        f'<div class="scroll" tabindex="0"><table aria-label="{name}">',
        f"<thead><tr>{heads}</tr></thead><tbody>",
        *html_rows(sheet),
        "</tbody></table></div>",
    )
    return "\n".join(lines)


def svg(figure: Figure, salt: str, label: str) -> str:
    """A picture as an SVG element, with the same bytes each time, and letters as paths.

    Args:
      salt: a text that is different for each picture of a page, to make element ids distinct.
      label: a description for screen readers.
    """
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "path"}):
        figure.savefig(
            text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    for attribute in ('id="', 'xlink:href="#', "url(#"):
        drawn = drawn.replace(attribute, f"{attribute}{salt}-")
    return drawn.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)
