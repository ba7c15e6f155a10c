"""Print a table of finished runs, with the papers' numbers beside ours, or of a sweep's settings.

    python -m experiments.table --table=lora_table2 --results=runs/lora_table2 --format=markdown
    python -m experiments.table --results=runs/sweep  # a row for each setting
    python -m experiments.table --documents=README.md,docs  # rewrites their tables of runs

Records may lie anywhere below the folder. A cell is `ours / published`; the number in parentheses
is the number of runs behind ours, or of draws of the training examples that runs share.
"""

import functools
from pathlib import Path

from absl import flags

from experiments import cli
from experiments.analysis import recorded_runs, setting_grid
from experiments.reports import document, grid, registered
from experiments.reports.tables import cells, config_tables
from experiments.reports.tables.config_tables import RESULTS, names, render_table
from experiments.studies import adherence
from lora_jax.files import marked_documents
from lora_jax.messages import require_known

_TABLE = flags.DEFINE_string(
    "table", None, "The name of a config file with a table, for example lora_table2."
)
_RESULTS = flags.DEFINE_string(
    "results", str(RESULTS), "The folder with the runs' records below it."
)
_FORMAT = flags.DEFINE_enum("format", "rich", cells.FORMATS, "The format of the table.")
_MODEL = flags.DEFINE_string(
    "model", None, "Only this model of the table. The default is all models."
)
_SIZE = flags.DEFINE_enum("size", "full", ["full", "smoke"], "Show only runs of this size.")
_DOCUMENTS = flags.DEFINE_list("documents", [], marked_documents.HELP)


def show() -> None:
    results = Path(str(_RESULTS.value))
    if _DOCUMENTS.value:
        cli.refuse_all_but((_DOCUMENTS, _RESULTS), "--documents writes whole tables")
        make = functools.partial(render_table, results=results, form="markdown")
        marked_documents.update(
            _DOCUMENTS.value, lambda text: marked_documents.fill_blocks(text, "table", make)
        )
        _warn(results)
        return
    if _TABLE.value is None and _RESULTS.present:
        made, notes = config_tables.contests_of(results, _SIZE.value)
        if _MODEL.value is not None:
            models = [each.model for each in made]
            require_known(_MODEL.value, models, f"--model={_MODEL.value}: nothing run in {results}")
            made = [each for each in made if each.model == _MODEL.value]
        grids = [setting_grid.of_contest(each) for each in made]
        title = config_tables.shared_title(results, made)
        text = grid.render(_FORMAT.value, grids, notes, _SIZE.value, title or document.TITLE)
        print(document.beginning(_FORMAT.value, title) + text, end="")
        _warn(results)
        return
    if _TABLE.value is None:
        raise ValueError(
            "give --results=FOLDER for the settings of its runs, or --table, one of "
            f"{', '.join(names())}"
        )
    first = _evidence(results, _TABLE.value, _SIZE.value) if results.is_dir() else []
    shown = _FORMAT.value, _MODEL.value, _SIZE.value
    print(render_table(_TABLE.value, results, *shown, first), end="")
    _warn(results, _TABLE.value)


def _evidence(results: Path, table: str, size: str) -> list[str]:
    """What each task of a registered study can show, in a sentence or two."""
    runs = [
        e for e in recorded_runs.find(results) if (e.study.table, e.study.size) == (table, size)
    ]
    return [
        each.said
        for kept in adherence.of_folder(results, runs)
        if kept.registered.study == table and kept.counted
        for each in registered.evidence_of(kept, registered.contests_of(kept))
    ]


def _warn(results: Path, table: str | None = None) -> None:
    """Warn on standard error if records of the table have no seal."""
    runs = [run for run in recorded_runs.find(results) if table in (None, run.study.table)]
    cli.warn(recorded_runs.unsealed(runs))


if __name__ == "__main__":
    cli.main(show)
