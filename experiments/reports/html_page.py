"""Write a report as one HTML page: first what was found, then how, with nothing from elsewhere.

It says where it comes from: the command and the code that made it, and those of its runs, to whose
folders it leads by paths relative to the page.
"""

import dataclasses
import html
import os
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.analysis.choose_methods import Contest, Method
from lora_jax.messages import agree, count
from lora_jax.records.run_record import Record
from lora_jax.table import Links, Table

if TYPE_CHECKING:
    from experiments.reports.plots import Picture

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #57606a;
  --line: #d9dee3; --shade: #f3f5f7; --warn: #fff4d6; --edge: #b88600; --link: #0b5cad;
  --grey: #7f7f7f; --blue: #0072b2; --orange: #d55e00; --green: #008a64;
  --veil: rgba(0, 0, 0, .22); }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --paper: #14171b;
  --soft: #a3adb8; --line: #343b43; --shade: #1d2228; --warn: #33290f; --edge: #d6a82f;
  --link: #7cc0ff; --grey: #9aa2ab; --blue: #56b4e9; --orange: #f08a4b; --green: #3cc79a;
  --veil: rgba(255, 255, 255, .28); } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1240px;
  padding: 0 1rem 3rem; color: var(--ink); background: var(--paper); }
h1 { font-size: 1.6rem; margin: 1.2rem 0 .6rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
h1, h2, h3, p, li, figcaption { overflow-wrap: anywhere; }
a { color: var(--link); }
.verdict { font-size: 1.15rem; max-width: 60rem; border-left: 4px solid var(--blue);
  padding: .2rem 0 .2rem .8rem; margin: .8rem 0; }
nav ul { margin: .6rem 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap;
  gap: .2rem 1.2rem; }
.about { color: var(--soft); margin: .2rem 0; }
.origin { color: var(--soft); font-size: .85rem; max-width: 60rem; margin: .4rem 0; }
.origin code { overflow-wrap: anywhere; }
ul.warnings { background: var(--warn); border-left: 4px solid var(--edge); margin: 1rem 0;
  padding: .6rem 1rem .6rem 2rem; max-width: 60rem; }
.scroll { overflow-x: auto; margin: .4rem 0 1.4rem; background:
  linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--veil), transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: separate; border-spacing: 0; font-size: .85rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }
td.number, thead th.number { text-align: right; }
thead th { border-top: 2px solid var(--ink); border-bottom: 1px solid var(--ink);
  vertical-align: bottom; white-space: normal; min-width: 4rem; }
tbody th, thead th:first-child { position: sticky; left: 0; background: var(--paper); }
tbody th { font-weight: 500; min-width: 5.5rem; max-width: 9rem; white-space: normal; }
tbody tr:hover > td { background: var(--shade); }
thead button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
  text-align: inherit; cursor: pointer; }
thead button::after { content: "\\a0\\2195"; color: var(--soft); font-weight: 400; }
thead [aria-sort=ascending] button::after { content: "\\a0\\2191"; color: inherit; }
thead [aria-sort=descending] button::after { content: "\\a0\\2193"; color: inherit; }
.figures { display: grid; gap: 1.6rem 1.2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
figure { margin: 0; } figure svg { width: 100%; height: auto; max-width: 600px; display: block; }
figure h3 { margin: 0 0 .2rem; }
figcaption { font-size: .85rem; color: var(--soft); max-width: 600px; margin-top: .3rem; }
.notes { color: var(--soft); font-size: .875rem; max-width: 60rem; }
@media print { .scroll { overflow: visible; } thead button::after { content: none; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button")
    button.type = "button"
    button.append(...head.childNodes)
    head.append(button)
    button.addEventListener("click", () => {
      const number = head.classList.contains("number")
      const first = number ? "descending" : "ascending"
      const other = number ? "ascending" : "descending"
      const order = head.getAttribute("aria-sort") === first ? other : first
      for (const each of head.parentNode.children) each.removeAttribute("aria-sort")
      head.setAttribute("aria-sort", order)
      const body = table.tBodies[0], sign = order === "ascending" ? 1 : -1
      const key = row => {
        const cell = row.children[column]
        return number ? parseFloat(cell.dataset.value) : cell.textContent
      }
      const compare = (one, two) => {
        const a = key(one), b = key(two)
        if (!number) return sign * a.localeCompare(b)
        if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b)
        return sign * (a - b)
      }
      body.append(...[...body.rows].sort(compare))
    })
  })
}
"""
"""Makes buttons of the headings of tables; without it, the tables are there all the same."""


def links_of(contest: Contest, start: Path) -> Links:
    """For each method, its scored runs: the folder that holds them and no others, or each by seed.

    A packed run has no folder to lead to. Where all are packed, there are no links.

    Args:
      start: the folder of the page.
    """
    parents = {method.key: {run.folder.parent for run in method.runs} for method in contest.methods}
    found = [_links_of_method(method, parents, start) for method in contest.methods]
    return found if any(found) else ()


def _links_of_method(
    method: Method, parents: dict[str, set[Path]], start: Path
) -> list[tuple[str, str]]:
    others = {each for key, own in parents.items() if key != method.key for each in own}
    if any(run.pack for run in method.runs):
        return []
    if len(parents[method.key]) == 1 and len(method.runs) > 1:
        (parent,) = parents[method.key]
        if parent not in others:
            return [(parent.name, address_of(parent, start))]
    return [(f"seed {run.record.seed}", address_of(run.folder, start)) for run in method.runs]


def address_of(folder: Path, start: Path) -> str:
    """A folder as seen from another one, as a relative address."""
    return urllib.parse.quote(Path(os.path.relpath(folder, start)).as_posix() + "/")


VERSIONS = ("lora_jax", "jax", "jaxlib", "python")
MOST_COMMITS = 4
"""The most commits that are named."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """When and by what a report was made, and the commits and versions of its runs.

    Empty texts are not known, and not said.
    """

    date: str = ""
    command: str = ""
    commit: str = ""
    runs: int = 0
    run_commits: Sequence[str] = ()
    run_versions: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[tuple[str, str]]:
        """Sentences, and the code that follows each, if any."""
        made = []
        when = f"Generated {self.date}" if self.date else "Generated"
        at = f" at commit {self.commit}" if self.commit else ""
        if self.command:
            made.append((f"{when}{at} by", self.command))
        elif at or self.date:
            made.append((f"{when}{at}.", ""))
        if self.runs:
            of = count(self.runs, "run")
            more = f" and {len(self.run_commits) - MOST_COMMITS} more"
            commits = ", ".join(self.run_commits[:MOST_COMMITS]) + more * (
                len(self.run_commits) > MOST_COMMITS
            )
            noun = agree(len(self.run_commits), "commit", "commits")
            where = f" at {noun} {commits}" * bool(commits)
            versions = [
                f"{name} {' and '.join(own)}" for name, own in self.run_versions.items() if own
            ]
            by = f", with {', '.join(versions)}" if versions else ""
            made.append((f"From the records of {of}{where}{by}.", ""))
        return made


def origin_of(made: Sequence[Contest], **how: str) -> Origin:
    """The origin of a report of some contests; `how` is what is known of the report itself."""
    records = [
        run.record
        for contest in made
        for method in contest.methods
        for setting in method.settings
        for run in setting.runs
    ]
    commits = dict.fromkeys(filter(None, (commit_text(each.git) for each in records)))
    return Origin(
        runs=len(records), run_commits=tuple(commits), run_versions=_versions(records), **how
    )


def commit_text(git: Mapping[str, str | bool] | None) -> str:
    """The first characters of a commit, with a word if files had been changed; empty if unknown."""
    if git is None or not git.get("commit"):
        return ""
    changed = " (with changes)" if git.get("dirty") else ""
    return f"{str(git['commit'])[:10]}{changed}"


def _versions(records: Iterable[Record]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {name: {} for name in VERSIONS}
    for record in records:
        for name in VERSIONS:
            if version := record.versions.get(name):
                found[name][version] = None
    return {name: sorted(own) for name, own in found.items()}


GENERATOR = "experiments.report"
"""What the page says made it."""


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
        f'<meta name="generator" content="{GENERATOR}">',
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
    from experiments.reports.figures import style  # with matplotlib, as each picture has a figure

    lines = ['<div class="figures">']
    for at, each in enumerate(section.pictures):
        drawn = style.svg(each.figure, f"p{number}f{at}", f"{section.title}: {each.title}")
        lines.append(f"<figure><h3>{html.escape(each.title)}</h3>{drawn}")
        lines.append(f"<figcaption>{html.escape(each.caption)}</figcaption></figure>")
    return [*lines, "</div>"]


def _origin(text: str, code: str) -> str:
    return html.escape(text) + (f" <code>{html.escape(code)}</code>" if code else "")
