"""Report which methods are better, by how much, and how certain that is, for all runs of a folder.

    python -m experiments.report --results=runs/against_lora --out=report.html
    python -m experiments.report --documents=README.md,docs  # rewrites what committed studies found

The folder may have the parts of a study, each registered in a folder of its own: the report says
what each part found, and then has its tables and pictures.

The runs may come from `experiments.tune`, which chooses settings on held-out examples, or from any
grid of settings and seeds. The report takes the best setting of each method and states how many
settings and runs were tried. It compares methods by their common seeds and by the stored
predictions of their runs; `experiments.analysis.significance` describes each test.

The report begins with the grid: a row for each setting, with its mean, spread and missing runs.

`--varies=train.batch_size` names a setting that the study varies, besides the sections `variant`,
`optimizer`, `quantize`, `targets` and `also_train`, and what a sweep varied. Runs that differ in
anything else are an error. Runs without a record, such as killed ones, are counted with their
methods. Runs that belong to no study are left out where others belong to one, and smoke runs unless
`--size=smoke` asks for them.
"""

import dataclasses
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import cli
from experiments.analysis import collect_runs, recorded_runs
from experiments.analysis.bootstrap import RESAMPLES
from experiments.analysis.choose_methods import Contest, contests
from experiments.command_names import shown
from experiments.reports import document, html_page, registered, study_blocks
from experiments.reports.document import Document
from experiments.reports.tables import config_tables
from experiments.studies import adherence
from experiments.studies.adherence import Adherence
from lora_jax.files import marked_documents
from lora_jax.messages import count
from lora_jax.records.environment import environment

_RESULTS = flags.DEFINE_string(
    "results", None, "The folder with the runs' records below it. Only --documents goes without it."
)
_FORMAT = flags.DEFINE_enum(
    "format",
    None,
    document.FORMATS,
    "The format of the report: by default that of --out, if it ends in "
    f"{', '.join(document.SUFFIXES)}, or else rich.",
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "The file to write. By default the report is printed. An earlier report in the same format is "
    "replaced; any other file is an error.",
)
_TABLE = flags.DEFINE_string(
    "table", None, "Report only runs of this config. The default is all runs."
)
_SIZE = flags.DEFINE_enum("size", "full", ["full", "smoke"], "Report only runs of this size.")
_REFERENCE = flags.DEFINE_string(
    "reference",
    None,
    "The method to compare others with: by default that of the registered study, or lora, or else "
    "the first.",
)
_PAIRS = flags.DEFINE_bool(
    "pairs",
    False,
    "Compare all pairs of methods of a registered study over all its tasks, also if it registered "
    "only comparisons with its reference.",
)
_VARIES = flags.DEFINE_list(
    "varies", [], "Further settings that the study varies, such as train.batch_size."
)
_FIGURES = flags.DEFINE_string(
    "figures",
    None,
    "The folder for the pictures, each as a PNG, an SVG and a PDF file. By default none are drawn.",
)
_RESAMPLES = flags.DEFINE_integer(
    "resamples", RESAMPLES, "How many bootstrap resamples to draw.", lower_bound=100
)
_SEED = flags.DEFINE_integer("seed", 0, "The seed of the bootstrap resamples.", lower_bound=0)
_DOCUMENTS = flags.DEFINE_list(
    "documents", [], f"{marked_documents.HELP} They show the committed studies."
)


def report() -> None:
    if _DOCUMENTS.value:
        cli.refuse_all_but((_DOCUMENTS,), "--documents writes what committed studies found")
        marked_documents.update(_DOCUMENTS.value, study_blocks.fill)
        return
    if _RESULTS.value is None:
        raise ValueError("--results is missing: the folder with the runs' records below it")
    if _PAIRS.value and _REFERENCE.value is not None:
        raise ValueError(
            f"--pairs and --reference={_REFERENCE.value}: give one of them; --reference leaves out "
            "what is over all tasks"
        )
    out = None if _OUT.value is None else Path(_OUT.value)
    form = _FORMAT.value or document.format_of(out)
    if out is not None:
        document.require_replaceable(out, form)
    pictures = None if _FIGURES.value is None else Path(_FIGURES.value)
    if pictures is not None and pictures.is_file():
        raise ValueError(f"--figures={pictures} is a file: name a folder")
    folder = Path(str(_RESULTS.value))
    lost = [each for each in recorded_runs.find_unfinished(folder) if _wanted(each)]
    found = recorded_runs.find(folder)
    made, kept, notes = compared(folder, found, _TABLE.value, _SIZE.value, _VARIES.value, lost)
    placed = {each.folder for contest in made for each in contest.unfinished}
    notes += apart([each for each in lost if each.folder not in placed])
    names = document.names_of_parts(kept)
    by_digest = {
        each.registered.digest: registered.of_study(each, bool(_PAIRS.value)) for each in kept
    }
    studies = [dataclasses.replace(by_digest[each], title=name) for each, name in names.items()]
    title, made = (
        config_tables.shared_title(folder, made),
        document.with_names_of_parts(made, names),
    )
    if _PAIRS.value and not studies:
        raise ValueError(
            f"--pairs: {folder} has no registered study; without --pairs, the report compares all "
            "pairs of methods on each task"
        )
    if _REFERENCE.value is not None and studies:
        notes.append(
            f"--reference={_REFERENCE.value} leaves out what the registration compares: give no "
            "--reference to see that."
        )
    whole = Document(
        made,
        _REFERENCE.value,
        title=title,
        resamples=_RESAMPLES.value,
        seed=_SEED.value,
        size=_SIZE.value,
        studies=studies if _REFERENCE.value is None else (),
    )
    start = Path.cwd() if out is None else out.parent
    text = whole.render(form, notes, _origin(made), start)
    if pictures is not None:
        whole.write_pictures(pictures)
    if out is None:
        print(text, end="")
        return
    document.write_report(out, form, text)
    print(f"report: {out}")


def _origin(made: list[Contest]) -> html_page.Origin:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    command = f"{shown('report')} {shlex.join(sys.argv[1:])}"
    commit = html_page.commit_text(environment()["git"])
    return html_page.origin_of(made, date=today, command=command, commit=commit)


def compared(
    folder: Path,
    found: list[recorded_runs.Run],
    table: str | None,
    size: str,
    varies: Sequence[str],
    lost: Sequence[recorded_runs.Unfinished],
) -> tuple[list[Contest], list[Adherence], list[str]]:
    """The contests between the runs of a table and a size, and notes on these runs.

    Runs that are not as registered are in no contest. How runs keep to each registered study is
    also returned.

    Raises:
      ValueError: no such run has completed; the message counts completed runs of other sizes.
    """
    own, notes = collect_runs.select(found, table, size, parts=True)
    notes += [f"Warning: {said}"] if (said := recorded_runs.unsealed(own)) else []
    collect_runs.require_settings_of(varies, own)
    kept = adherence.of_folder(folder, own, found)
    notes += adherence.elsewhere({each.registered.digest for each in kept}, own)
    own = adherence.without_departures(kept, own)
    tables = config_tables.tables(folder)
    varies = [*varies, *recorded_runs.swept(folder)]
    varies += config_tables.varied(tables, {run.study.table for run in own})
    if made := contests(own, config_tables.titles(tables), varies, lost):
        return made, kept, notes
    others = ""
    if departures := [said for each in kept for said in each.departures]:
        number = sum(len(each.left_out) for each in kept)
        others = f"; {collect_runs.left_out(number, f'not as registered ({departures[0]})')}"
    raise ValueError(collect_runs.none_completed(folder, found, size) + others)


def _wanted(run: recorded_runs.Unfinished) -> bool:
    """Whether a run without a record can belong to the table and size that the flags ask for."""
    table, size = run.study.table or _TABLE.value, run.study.size
    return table in (None, _TABLE.value or table) and size == _SIZE.value


def apart(lost: Sequence[recorded_runs.Unfinished]) -> list[str]:
    """A note on the runs without a record that belong to no contest; nothing if there are none."""
    if not lost:
        return []
    runs = count(len(lost), "run")
    folders = ", ".join(str(each.folder) for each in lost[:3]) + ", ..." * (len(lost) > 3)
    why = "no run with the same settings and registration has one"
    return [f"{runs} without a record, and {why}: {folders}"]


if __name__ == "__main__":
    cli.main(report)
