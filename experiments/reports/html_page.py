"""Write a report as one HTML page: first what was found, then how, with nothing from elsewhere."""

import dataclasses
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.reports import file
from experiments.reports.origin import Origin
from experiments.reports.page_style import SCRIPT, STYLE
from lora_jax.table import Links, Table

if TYPE_CHECKING:
    from experiments.reports.pictures import Picture


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: its heading, warnings, tables, pictures and notes, in this order.

    With `seen_first`, pictures come before tables. `links` are those of the rows of each table, as
    far as any has some.
    """

    title: str
    warnings: Sequence[str] = ()
    sheets: Sequence[Table] = ()
    pictures: "Sequence[Picture]" = ()
    links: Sequence[Links] = ()
    seen_first: bool = False
    notes: Sequence[str] = ()


def page(
    title: str,
    about: Sequence[str],
    verdicts: Sequence[str],
    origin: Origin,
    sections: Sequence[Section],
    notes: Sequence[str],
) -> str:
    """The whole HTML page.

    Args:
      about: what was run, which stands below the title.
      verdicts: a sentence for each study, which follows.
    """
    names = [(f"s{number}", section.title) for number, section in enumerate(sections, 1)]
    names += [("notes", "What the numbers are")] * bool(notes)
    contents = "".join(f'<li><a href="#{at}">{html.escape(name)}</a></li>' for at, name in names)
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta name="generator" content="{file.GENERATOR}">',
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        *(f'<p class="about">{html.escape(text)}</p>' for text in about),
        *(f'<p class="verdict">{html.escape(text)}</p>' for text in verdicts),
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>',
        *(f'<p class="origin">{_origin(text, code)}</p>' for text, code in origin.lines()),
    ]
    for number, section in enumerate(sections, 1):
        lines += [*_section(section, number), "</section>"]
    if notes:
        lines.append('<section id="notes"><h2>What the numbers are</h2>')
        lines += [f'<p class="notes">{html.escape(note)}</p>' for note in notes]
        lines.append("</section>")
    return "\n".join([*lines, f"<script>{SCRIPT}</script></body></html>"]) + "\n"


def _section(section: Section, number: int) -> list[str]:
    lines = [f'<section id="s{number}"><h2>{html.escape(section.title)}</h2>']
    lines += _list(section.warnings, "warnings")
    tables = [
        sheet.to_html(section.links[at] if at < len(section.links) else ())
        for at, sheet in enumerate(section.sheets)
    ]
    drawn = _pictures(section, number)
    lines += [*drawn, *tables] if section.seen_first else [*tables, *drawn]
    return [*lines, *_list(section.notes, "notes")]


def _list(texts: Sequence[str], kind: str) -> list[str]:
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return [f'<ul class="{kind}">{items}</ul>'] * bool(texts)


def _pictures(section: Section, number: int) -> list[str]:
    if not section.pictures:
        return []
    from experiments.figures import files  # with matplotlib, as each picture has a figure

    lines = ['<div class="figures">']
    for at, each in enumerate(section.pictures):
        drawn = files.svg(each.figure, f"p{number}f{at}", f"{section.title}: {each.title}")
        lines.append(f"<figure><h3>{html.escape(each.title)}</h3>{drawn}")
        lines.append(f"<figcaption>{html.escape(each.caption)}</figcaption></figure>")
    return [*lines, "</div>"]


def _origin(text: str, code: str) -> str:
    return html.escape(text) + (f" <code>{html.escape(code)}</code>" if code else "")
