"""What registered studies found, as blocks of the project's documents."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from experiments.analysis import collect_runs, recorded_runs
from experiments.analysis.labels import natural
from experiments.marked_documents import fill_blocks
from experiments.reports import claims_table, registered
from experiments.reports.findings import Findings
from experiments.reports.verdict import sentence
from experiments.tables.config_tables import RESULTS, ROOT
from lora_jax.table import Table, render_tables


def fill(text: str, results: Path = ROOT / RESULTS) -> str:
    """A text whose blocks, such as that of `<!-- study: lora_scale -->`, are made anew.

    The block of `<!-- papers -->` has papers' claims beside what the studies found.

    Args:
      results: the folder that has the folders of studies; a block's name is one of these.

    Raises:
      ValueError: a marker without its partner, or a name that is no folder of registered studies.
    """
    text = fill_blocks(text, "study", lambda name: block(results / name))
    return fill_blocks(text, "papers", lambda _: claims_table.block(results))


def block(folder: Path, size: str = "full") -> str:
    """The verdict and the gains of each registered study in or below a folder, as Markdown."""
    names = natural(
        each.parent.relative_to(folder).as_posix()
        for each in folder.rglob(recorded_runs.REGISTRATION)
    )
    if not names:
        raise ValueError(f"{folder} has no registered study")
    studies = {name: _found(folder / name, size) for name in names}
    if len(studies) == 1:
        (study,) = studies.values()
        return render_tables("markdown", study.sheets, first=[sentence(study)])
    verdicts = [f"{name}: {sentence(study)}" for name, study in studies.items()]
    kinds = zip(*(study.sheets for study in studies.values()), strict=True)
    sheets = [sheet for own in kinds for sheet in together(dict(zip(studies, own, strict=True)))]
    return render_tables("markdown", sheets, first=verdicts)


def _found(folder: Path, size: str) -> Findings:
    runs, _ = collect_runs.select(recorded_runs.find(folder), None, size)
    (study,) = registered.found(folder, runs)
    return study


def together(sheets: Mapping[str, Table]) -> list[Table]:
    """One table of several studies, each with its name before its rows.

    If some have other columns, each has a table of its own.
    """
    if len({tuple(sheet.heads) for sheet in sheets.values()}) > 1:
        return [dataclasses.replace(e, title=f"{name}: {e.title}") for name, e in sheets.items()]
    rows = [[name, *row] for name, sheet in sheets.items() for row in sheet.rows]
    first = list(sheets.values())[:1]
    return [dataclasses.replace(e, heads=("study", *e.heads), rows=rows) for e in first]
