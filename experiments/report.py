"""Report which methods are better, by how much, and how certain that is, for all runs of a folder.

    python -m experiments.report --results=runs/against_lora --format=html --out=report.html

The runs may come from `experiments.tune`, which chooses settings on held-out examples, or from any
grid of settings and seeds. The report takes the best setting of each method and states how many
settings and runs were tried. It compares methods by their common seeds and by the stored
predictions of their runs; `experiments.analysis.significance` describes each test.

`--varies=train.batch_size` names a setting that the study varies, besides the sections `variant`,
`optimizer`, `quantize`, `targets` and `also_train`. Runs that differ in anything else are an error.
Runs without a record, such as killed ones, are counted with their methods.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import cli
from experiments.analysis import collect_runs, recorded_runs, unfinished_runs
from experiments.analysis.bootstrap import RESAMPLES
from experiments.analysis.choose_methods import Contest, Method, contests
from experiments.analysis.pairwise import pairs, swapped
from experiments.reports import csv_lines, file, html_page, plots, warnings
from experiments.reports.sheets import methods_sheet, reference_sheet, wins_sheets
from experiments.tables import config_tables, text_formats
from lora_jax.suggest import require_known

_RESULTS = flags.DEFINE_string("results", None, "Folder with the runs' records below it.")
_FORMAT = flags.DEFINE_enum("format", "rich", file.FORMATS, "The format of the report.")
_OUT = flags.DEFINE_string(
    "out",
    None,
    "The file to write. By default the report is printed. An earlier report in the same format is "
    "replaced; any other file is an error.",
)
_TABLE = flags.DEFINE_string("table", None, "Report only runs of this config.")
_SIZE = flags.DEFINE_enum("size", "full", ["full", "smoke"], "Report only runs of this size.")
_REFERENCE = flags.DEFINE_string(
    "reference", None, "The method to compare others with: by default lora, or else the first."
)
_VARIES = flags.DEFINE_list("varies", [], "Further settings that the study varies.")
_FIGURES = flags.DEFINE_string(
    "figures", None, "The folder for the pictures, as PNG files. By default none are drawn."
)
_RESAMPLES = flags.DEFINE_integer(
    "resamples", RESAMPLES, "How many bootstrap resamples to draw.", lower_bound=100
)
_SEED = flags.DEFINE_integer("seed", 0, "The seed of the bootstrap resamples.")


def report() -> None:
    if _OUT.value is not None:
        file.require_replaceable(Path(_OUT.value), _FORMAT.value)
    folder = Path(str(_RESULTS.value))
    lost = [each for each in unfinished_runs.find(folder) if _wanted(each)]
    found = recorded_runs.find(folder)
    made, notes = compared(folder, found, _TABLE.value, _SIZE.value, _VARIES.value, lost)
    placed = {each.folder for contest in made for each in contest.unfinished}
    notes += apart([each for each in lost if each.folder not in placed])
    text = render(
        made, _FORMAT.value, _REFERENCE.value, notes, resamples=_RESAMPLES.value, seed=_SEED.value
    )
    if _FIGURES.value is not None:
        write_pictures(made, Path(_FIGURES.value))
    if _OUT.value is None:
        print(text, end="")
        return
    file.write(Path(_OUT.value), _FORMAT.value, text)
    print(f"report: {_OUT.value}")


def compared(
    folder: Path,
    found: list[recorded_runs.Run],
    table: str | None,
    size: str,
    varies: Sequence[str],
    lost: Sequence[unfinished_runs.Unfinished],
) -> tuple[list[Contest], list[str]]:
    """The contests between the runs of a table and a size, and notes on these runs.

    Raises:
      ValueError: no such run has completed; the message counts completed runs of other sizes.
    """
    own, notes = select(found, table, size)
    notes += [f"Warning: {said}"] if (said := recorded_runs.unsealed(own)) else []
    names = {name: table["rows"] for name, table in config_tables.tables().items()}
    if made := contests(own, names, varies, lost):
        return made, notes
    others = collect_runs.elsewhere(found, size)
    raise ValueError(
        f"--results {folder}: no run of size {size} has completed: nothing to compare{others}"
    )


def _wanted(run: unfinished_runs.Unfinished) -> bool:
    """Whether a run without a record can belong to the table and size that the flags ask for."""
    table, size = run.study.table or _TABLE.value, run.study.size
    return table in (None, _TABLE.value or table) and size == _SIZE.value


def apart(lost: Sequence[unfinished_runs.Unfinished]) -> list[str]:
    """A note on the runs without a record that belong to no contest; nothing if there are none."""
    if not lost:
        return []
    runs = f"{len(lost)} {'run' if len(lost) == 1 else 'runs'}"
    folders = ", ".join(str(each.folder) for each in lost[:3]) + ", ..." * (len(lost) > 3)
    return [f"{runs} without a record, and no run with the same settings has one: {folders}"]


def select(
    runs: list[recorded_runs.Run], table: str | None, size: str
) -> tuple[list[recorded_runs.Run], list[str]]:
    """The runs of a table and a size, and a note on how many of another size were left out.

    Args:
      table: None for the runs of all tables.

    Raises:
      ValueError: there are no runs of the table.
    """

    def name(run: recorded_runs.Run) -> str:
        return run.study.table or run.record.experiment

    known = sorted({name(run) for run in runs})
    if table is not None:
        require_known(table, known, f"no runs of --table={table}")
    own = [run for run in runs if table in (None, name(run))]
    sized = [run for run in own if run.study.size == size]
    left = len(own) - len(sized)
    said = f"{left} {'run' if left == 1 else 'runs'} left out: of another size"
    return sized, [said] * bool(left)


def render(
    made: list[Contest],
    form: str,
    reference: str | None = None,
    notes: list[str] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> str:
    """The report as text in one of `FORMATS`.

    Raises:
      ValueError: no contest has the reference method, or the predictions of two runs are of
        different examples.
    """
    references = refer(made, reference)
    family = [
        swapped(pair) if pair.first is own else pair
        for contest, own in zip(made, references, strict=True)
        for pair in pairs(contest, resamples, seed)
    ]
    if form == "csv":
        return csv_lines.lines(made, family)
    sections = []
    for contest, own in zip(made, references, strict=True):
        shown = [methods_sheet(contest)]
        said = warnings.contest_warnings(contest, family)
        if own is None:
            said.append(f"The reference, {reference}, was not run here.")
        elif len(contest.methods) > 1:
            shown.append(reference_sheet(contest, own, family))
        sections.append(html_page.Section(contest.title, said, shown))
    if family:
        sections.append(html_page.Section("All pairs", (), wins_sheets(family)))
    referred = any(pair.second is own for pair in family for own in references)
    explained = warnings.explain(made, family, resamples, referred) + (notes or [])
    if form == "html":
        figures = [plots.figures(contest) for contest in made]
        return html_page.page(file.TITLE, sections, figures, explained)
    said = [
        f"Warning, {section.title}: {text}" for section in sections for text in section.warnings
    ]
    shown = [each for section in sections for each in section.sheets]
    return file.BEGINNINGS[form] + getattr(text_formats, form)(shown, explained + said)


def refer(made: list[Contest], reference: str | None) -> list[Method | None]:
    """The reference method of each contest, None for a contest without it.

    By default it is lora, or else the contest's first method.

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
        found.append(by_key.get(reference or "lora", default))
    return found


def write_pictures(made: list[Contest], folder: Path) -> None:
    """Write the pictures of every contest as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, contest in enumerate(made, 1):
        for name, figure in plots.figures(contest).items():
            stem = f"{number}_{contest.table}_{contest.task}_{name.lower()}"
            figure.savefig(folder / f"{stem.replace(' ', '_').replace('/', '_')}.png", dpi=150)


if __name__ == "__main__":
    flags.mark_flags_as_required(["results"])
    cli.main(report)
