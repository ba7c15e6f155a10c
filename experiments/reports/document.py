"""Put a report together: what is compared, the parts of the document in order, and its file."""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.analysis import rate_choice, setting_grid
from experiments.analysis.bootstrap import RESAMPLES
from experiments.analysis.choose_methods import Contest, Method
from experiments.analysis.labels import natural
from experiments.analysis.pairwise import Pair, pairs, swapped
from experiments.analysis.rate_choice import Choice
from experiments.analysis.setting_grid import Grid
from experiments.reports import csv_lines, findings, grid, html_page, warnings
from experiments.reports.csv_lines import COLUMNS
from experiments.reports.figures import require_matplotlib
from experiments.reports.findings import Findings, sentence
from experiments.reports.html_page import GENERATOR, Origin
from experiments.reports.sheets import (
    GAINS_NOTE,
    methods_sheet,
    pair_sheet,
    reference_sheet,
    wins_sheets,
)
from experiments.studies.adherence import Adherence
from lora_jax.files.atomic import write_atomically
from lora_jax.messages import count, require_known
from lora_jax.table import Table, render_tables

if TYPE_CHECKING:
    from experiments.reports.plots import Picture


def names_of_parts(kept: Sequence[Adherence]) -> dict[str, str]:
    """What a report calls each registration, by its digest, in natural order of the names.

    It is the name of the study. Where one study has several, a folder follows: `lora_scale/16`.
    """
    count = Counter(each.registered.study for each in kept)
    found = {each.registered.digest: each.registered.study for each in kept}
    for study in (name for name, number in count.items() if number > 1):
        own = {each.registered.digest: each for each in kept if each.registered.study == study}
        folders = {digest: each.folder or Path() for digest, each in own.items()}
        above = os.path.commonpath(folders.values())
        found |= {d: f"{study}/{each.relative_to(above).as_posix()}" for d, each in folders.items()}
    order = natural(found.values())
    return dict(sorted(found.items(), key=lambda each: order.index(each[1])))


def with_names_of_parts(made: Sequence[Contest], known: Mapping[str, str]) -> list[Contest]:
    """The contests, each with the name of its registration in place of its table, by these names.

    Args:
      known: the names by digest; a contest of no such registration keeps its table.
    """
    found = [
        dataclasses.replace(each, table=known.get(each.registration, each.table)) for each in made
    ]
    order = natural(each.table for each in found)
    return sorted(found, key=lambda each: order.index(each.table))


FORMATS = ("rich", "markdown", "latex", "html", "csv")
SUFFIXES = {".md": "markdown", ".tex": "latex", ".html": "html", ".csv": "csv"}
"""The formats of files that end so."""
TITLE = "Comparison of methods"
_BEGINNINGS = {"rich": TITLE, "markdown": f"# {TITLE}", "latex": f"% {TITLE}"}
_ENDS = {"rich": "\n\n", "markdown": "\n\n", "latex": "\n"}
_SIGNS = _BEGINNINGS | {"html": f'content="{GENERATOR}"', "csv": ",".join(COLUMNS[:4])}
"""What a report in each format begins with; HTML has it near the beginning."""


def format_of(path: Path | None) -> str:
    """The format that the name of a file stands for; that of the console for any other, or none."""
    return "rich" if path is None else SUFFIXES.get(path.suffix.lower(), "rich")


def beginning(form: str, title: str) -> str:
    """The beginning of a report; empty for HTML and CSV, which have a place for it or none.

    `title` says what it is about, if anything.
    """
    if form not in _BEGINNINGS:
        return ""
    return _BEGINNINGS[form] + f": {title}" * bool(title) + _ENDS[form]


def require_replaceable(path: Path, form: str) -> None:
    """Check that a report may be written to a path.

    Raises:
      ValueError: it is a folder, or a file that is neither empty nor a report in this format.
    """
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder: name a file")
    if not path.exists():
        return
    with path.open("rb") as file:
        begins = file.read(4096)
    sign = _SIGNS[form].encode()
    of_form = sign in begins if form == "html" else begins.startswith(sign)
    if begins and not of_form:
        raise ValueError(
            f"--out {path} exists and is not a report with --format={form}: name another file, or "
            "remove this one"
        )


def write_report(path: Path, form: str, text: str) -> None:
    """Write a report atomically, and create its folder if needed.

    Raises:
      ValueError: as `require_replaceable`.
    """
    require_replaceable(path, form)
    write_atomically(path, text.encode())


class Document:
    """The report of some contests, of which every format is made.

    Raises:
      ValueError: no contest has the reference method, or the predictions of two runs are of
        different examples.
    """

    def __init__(
        self,
        made: Sequence[Contest],
        reference: str | None = None,
        *,
        title: str = "",
        resamples: int = RESAMPLES,
        seed: int = 0,
        size: str = "full",
        studies: Sequence[Findings] = (),
    ):
        """Test all pairs.

        Args:
          reference: the key of the method to compare others with; by default that of the study,
            or lora, or else the first of each contest.
          title: what the report is about; empty if that is not a single study.
          resamples, seed: of the bootstrap.
          size: that of the runs, which is said of all but full ones.
          studies: what registered studies found over all their tasks, in place of what pairs show.
            `Findings.title` is the name of the study's table. No verdicts are given on pairs of its
            contests.
        """
        self.made, self.reference, self.resamples, self.size = made, reference, resamples, size
        self.title = title
        self.references = refer(made, reference, {e.title: e.reference_key for e in studies})
        self.choices = [rate_choice.of_contest(each, seed=seed) for each in made]
        self.grids = [own for each in made if (own := setting_grid.of_contest(each)).shown]
        self.studies = studies
        self.told = {each.title for each in studies}
        self.family: list[Pair] = []
        self.apart: list[Pair] = []
        for contest, own in zip(made, self.references, strict=True):
            told = contest.table in self.told
            found = pairs(contest, resamples, seed, own if told else None)
            ordered = [swapped(pair) if pair.first is own else pair for pair in found]
            (self.apart if told else self.family).extend(ordered)
        others = findings.of_pairs(made, self.references, self.family)
        self.findings = [*studies, *(each for each in others if each.title not in self.told)]

    def render(
        self,
        form: str,
        notes: Sequence[str] = (),
        origin: Origin | None = None,
        start: Path | None = None,
    ) -> str:
        """The report as text in one of `document.FORMATS`.

        Args:
          notes: more to say of the runs.
          origin: where the report comes from, for the page.
          start: the folder of the page, from which it links to the runs; None for no links.
        """
        if form == "csv":
            tests = self.family, self.apart, self.studies
            return csv_lines.lines(self.made, *tests, self.size, self.choices, self.grids)
        sections = [
            self._section(contest, own, known, start, form)
            for contest, own, known in zip(self.made, self.references, self.choices, strict=True)
        ]
        if self.family:
            sections.append(
                html_page.Section("All pairs", (), self._sized(wins_sheets(self.family)))
            )
        every = [*self.family, *self.apart]
        referred = any(pair.second is own for pair in every for own in self.references)
        explained = [
            *grid.notes(self.grids),
            *[GAINS_NOTE] * any(each.sheet for each in self.findings),
            *warnings.explain(self.made, self.family, self.apart, self.resamples, referred),
            *rate_choice.notes(self.made, self.choices),
            *notes,
        ]
        verdicts = [f"{self._marked(each)}{sentence(each)}" for each in self.findings]
        free = [each for each in self.grids if each.contest.table not in self.told]
        verdicts += [said for each in free if (said := grid.sentence(each, self.size))]
        begin = [self._grid(each, form) for each in free]
        gains = [self._gains(each, form) for each in self.findings]
        gains += [self._grid(each, form) for each in self.grids if each not in free]
        if form == "html":
            shown = [*begin, *gains, *sections]
            title = self.title or TITLE
            about, where = _about(self.made), origin or Origin()
            return html_page.page(title, about, verdicts, where, shown, explained)
        parts = [*begin, *gains, *sections]
        said = [f"Warning, {each.title}: {text}" for each in parts for text in each.warnings]
        told = [f"{each.title}: {text}" for each in parts for text in each.notes]
        sheets = [sheet for each in parts for sheet in each.sheets]
        text = render_tables(form, sheets, [*told, *explained, *said], verdicts)
        return beginning(form, self.title) + text

    def write_pictures(self, folder: Path) -> list[Path]:
        """Write every picture as PNG, SVG and PDF, and return the paths."""
        require_matplotlib()
        from experiments.reports.figures import style

        paths = []
        for number, own in enumerate(self.grids, 1):
            for each in _grid_pictures(own, self.size):
                stem = _stem(number, f"{own.contest.table}_{own.contest.task}", each)
                paths += style.write_picture(each.figure, folder, stem)
        for number, found in enumerate(self.findings, 1):
            for each in _forests(found, self.size):
                paths += style.write_picture(each.figure, folder, _stem(number, found.title, each))
        for number, (contest, own) in enumerate(zip(self.made, self.references, strict=True), 1):
            for each in _plots(contest, own, self.size):
                stem = _stem(number, f"{contest.table}_{contest.task}", each)
                paths += style.write_picture(each.figure, folder, stem)
        return paths

    def _section(
        self,
        contest: Contest,
        own: Method | None,
        choices: Mapping[str, Choice],
        start: Path | None,
        form: str,
    ) -> html_page.Section:
        shown = [methods_sheet(contest, choices)]
        judged = contest.table not in self.told
        family = self.family if judged else self.apart
        said = warnings.contest_warnings(contest, family)
        if own is None:
            said.append(f"The reference, {self.reference}, was not run here.")
        elif len(contest.methods) > 1:
            shown.append(reference_sheet(contest, own, family, judged))
        links = [] if start is None else [html_page.links_of(contest, start)]
        several = len({(each.table, each.model) for each in self.made}) > 1
        title = contest.title if several else contest.task_title
        drawn = _plots(contest, own, self.size) if form == "html" else ()
        return html_page.Section(title, said, self._sized(shown), drawn, links)

    def _grid(self, own: Grid, form: str) -> html_page.Section:
        several = len(self.grids) > 1
        title = f"All settings, {own.contest.task_title}" if several else "All settings"
        drawn = _grid_pictures(own, self.size) if form == "html" else ()
        return html_page.Section(title, (), self._sized([grid.sheet(own)]), drawn)

    def _gains(self, found: Findings, form: str) -> html_page.Section:
        beside = f" ({found.title})" if len(self.findings) > 1 else ""
        title = f"Difference from {found.reference}{beside}"
        drawn = _forests(found, self.size) if form == "html" else ()
        sheets = found.sheets
        if any(each.methods for each in found.pairs):
            named = f"Gain of one method over another, all tasks together, {found.unit}"
            named += "" if found.pairs_registered else "; not registered"
            sheets.append(pair_sheet(found.pairs, named, found.level, found.planned_tasks))
        return html_page.Section(
            title, (), self._sized(sheets), drawn, seen_first=True, notes=found.notes
        )

    def _sized(self, sheets: Sequence[Table]) -> list[Table]:
        """The tables with the size in their titles, unless it is full."""
        small = f"{self.size} runs: " * (self.size != "full")
        return [dataclasses.replace(each, title=small + each.title) for each in sheets]

    def _marked(self, found: Findings) -> str:
        """What stands before a verdict: the study, if there are several, and the size."""
        study = f"{found.title}: " if len(self.findings) > 1 else ""
        small = f"These are {self.size} runs, which say nothing about methods. "
        return study + small * (self.size != "full")


def refer(
    made: Sequence[Contest], reference: str | None, of_studies: Mapping[str, str]
) -> list[Method | None]:
    """The reference method of each contest, None for a contest without it.

    By default it is that of the contest's study, or lora, or else the contest's first method.

    Args:
      of_studies: the references of registered studies, by the name of their table.

    Raises:
      ValueError: no contest has the reference.
    """
    known = {method.key for contest in made for method in contest.methods}
    if reference is not None:
        require_known(reference, known, f"no method --reference={reference}")
    found = []
    for contest in made:
        by_key = {method.key: method for method in contest.methods}
        default = None if reference else contest.methods[0]
        wanted = [reference] if reference else [of_studies.get(contest.table), "lora"]
        found.append(next((by_key[key] for key in wanted if key in by_key), default))
    return found


def _about(made: Sequence[Contest]) -> list[str]:
    """What was run: the study, the model, and how many tasks and seeds there are."""
    places: dict[tuple[str, str], list[Contest]] = {}
    for contest in made:
        places.setdefault((contest.table, contest.model_title), []).append(contest)
    said = []
    for (table, model), own in places.items():
        seeds = len({seed for contest in own for seed, _ in contest.numbers})
        said.append(f"{table}: {model}, {count(len(own), 'task')}, {count(seeds, 'seed')}")
    return said


def _forests(found: Findings, size: str) -> "Sequence[Picture]":
    require_matplotlib()
    from experiments.reports.plots import forests, marked

    return [marked(each, size) for each in forests(found)]


def _grid_pictures(own: Grid, size: str) -> "Sequence[Picture]":
    require_matplotlib()
    from experiments.reports import plots

    return [plots.marked(each, size) for each in plots.of_grid(own)]


def _plots(contest: Contest, own: Method | None, size: str) -> "Sequence[Picture]":
    require_matplotlib()
    from experiments.reports import plots

    return [plots.marked(each, size) for each in plots.pictures(contest, own)]


def _stem(number: int, of: str, picture: "Picture") -> str:
    """The name of a picture's files, without an ending."""
    name = f"{number}_{of}_{picture.stem}".lower()
    return "".join(each if each.isalnum() or each in "-_." else "_" for each in name)
