"""Write a table of a config's runs as text."""

import importlib
import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from configs import common_tasks, common_texts
from configs.settings import RunConfig, Study
from experiments.analysis import collect_runs, parameters, published, recorded_runs, scored_examples
from experiments.analysis.choose_methods import Contest, contests
from experiments.analysis.labels import Titles
from experiments.reports.tables import cells
from experiments.setup.config import fill as filled, of_record
from experiments.setup.config_files import config_modules
from experiments.studies import adherence, registration
from lora_jax.data.sources import is_generated
from lora_jax.files.json_text import plain
from lora_jax.messages import count, joined, require_known

ROOT = Path(__file__).parents[3]
MODELS = {**common_tasks.MODELS, **common_texts.MODELS}
GIVEN = {"model.name", "data.source", "data.files.train"}
"""Settings that say where a run's model and data are; they are not compared with the config."""
RESULTS = Path("experiments/results")


def names() -> list[str]:
    """The names of the configs that have a table."""
    return list(tables())


def tables(results: Path | None = None) -> dict[str, Mapping[str, Any]]:
    """The `TABLE` of each config by name: how to show its runs (`configs.common_tasks.table`).

    Args:
      results: a folder; studies registered in or below it have tables, too, without their files.
    """
    modules = {name: importlib.import_module(each) for name, each in config_modules().items()}
    own: dict[str, Mapping[str, Any]] = {
        name: module.TABLE for name, module in modules.items() if hasattr(module, "TABLE")
    }
    found = registration.below(results) if results is not None else []
    return {each.study: registered(each) for each in found} | own


def registered(study: registration.Registration) -> Mapping[str, Any]:
    """The table of a study as it was registered; what it leaves open has the usual values."""
    return {**common_tasks.table(study.study), **study.table}


def titles(known: Mapping[str, Mapping[str, Any]]) -> dict[str, Titles]:
    """What each of the tables calls its rows and columns."""
    return {name: titles_of(table) for name, table in known.items()}


def titles_of(table: Mapping[str, Any]) -> Titles:
    """What a table calls its rows and columns; a column of several metrics has no title."""
    count = Counter(column for _, column, _ in table["columns"])
    columns = {key: title if count[key] == 1 else "" for title, key, _ in table["columns"]}
    return Titles(table["rows"], columns)


def varied(known: Mapping[str, Mapping[str, Any]], names: Collection[str]) -> list[str]:
    """The settings in which methods of these tables differ, besides those of any study."""
    return [each for name, table in known.items() if name in names for each in table["varies"]]


def shared_title(results: Path, made: Sequence[Contest]) -> str:
    """The title of the table that all contests are of; empty if they are of several, or of none."""
    known = tables(results)
    titles = {known[each.table]["title"] if each.table in known else "" for each in made}
    return titles.pop() if len(titles) == 1 else ""


def contests_of(
    results: Path, size: str, table: str | None = None
) -> tuple[list[Contest], list[str]]:
    """The contests of a folder's runs, of a study or of none, and notes on runs left out.

    Raises:
      ValueError, FileNotFoundError: as `recorded_runs.find` and `choose_methods.contests`; also if
        no run of the size has completed.
    """
    found = recorded_runs.find(results)
    own, notes = collect_runs.select(found, table, size, parts=True)
    known = tables(results)
    varies = [*recorded_runs.swept(results), *varied(known, {run.study.table for run in own})]
    lost = recorded_runs.find_unfinished(results)
    if not (made := contests(own, titles(known), varies, lost)):
        raise ValueError(collect_runs.none_completed(results, found, size))
    return made, notes


def render_table(
    name: str,
    results: Path,
    form: str,
    model: str | None = None,
    size: str = "full",
    first: Sequence[str] = (),
) -> str:
    """The table of a config's runs below a folder, as text in one of `cells.FORMATS`.

    Args:
      first: notes that come before the others.

    Raises:
      ValueError, FileNotFoundError: an unknown table or model, no such folder, records that cannot
        share a table, runs of two registrations, or a record that its stored predictions
        contradict.
    """
    known = tables(results)
    found = recorded_runs.find(results)
    if name not in known and name in {collect_runs.name_of(run) for run in found}:
        raise ValueError(
            f"--table={name}: it has no table of its own; leave out --table, and {results} has one "
            "of the settings of its runs"
        )
    require_known(name, known, f"--table={name}: unknown table")
    table = known[name]
    chosen, left = _selected(results, found, name, size)
    collected = collect_runs.collect(chosen, name, size)
    for run in collected.runs:
        scored_examples.require_agreement(run)
    made = cells.blocks(table, collected.runs, published.load())
    if model is not None:
        models = [block.model for block in made]
        require_known(model, models, f"--model={model}: nothing run or published in {name}")
        made = [block for block in made if block.model == model]
        own = [run for run in chosen if run.model == model]
        collected = collect_runs.collect(own, name, size)  # notes on this model only
        left = [f"of all models, {said}" for said in left]
        if table["published"] and not any(block.published for block in made):
            left.append(f"Nothing is published of {model}: leave out --model to see what is.")
    notes = [*first, *_protocol(table, made), *table["notes"], *_starts(table, collected.runs)]
    notes += _given_models(collected.runs)
    if collected.runs and size == "smoke":
        notes.append("Smoke runs have a few steps: never compare them with published numbers.")
    if table["published"] and name in config_modules():
        notes += _changes(importlib.import_module(config_modules()[name]), collected.runs)
    notes += [] if made else [_none(name, found)]
    notes += [*left, *collected.notes]
    title = table["title"] if size == "full" else f"{table['title']}, {size} runs"
    return cells.write(form, made, title, notes, table["decimals"])


def _none(name: str, found: Sequence[recorded_runs.Run]) -> str:
    """What to say where a table has no row: which other runs the folder has."""
    others = Counter(collect_runs.name_of(run) for run in found if run.study.table != name)
    if not others:
        return "Nothing has been run."
    said = joined([f"{count(number, 'run')} of {other}" for other, number in others.items()])
    return (
        f"No run of {name} is here. The folder has {said}: leave out --table to see the settings "
        "of all runs."
    )


def _selected(
    results: Path, found: Sequence[recorded_runs.Run], name: str, size: str
) -> tuple[list[recorded_runs.Run], list[str]]:
    """The runs of a table that are as registered, if their study is, and notes on the others."""
    own = [run for run in found if run.study.table == name]
    if not own:
        return [], []
    chosen, left = collect_runs.select(own, name, size)
    kept, said = adherence.as_registered(results, chosen, own)
    return kept, [*left, *said]


def _protocol(table: Mapping[str, Any], made: list[cells.Block]) -> list[str]:
    """Notes on how the numbers were obtained: on ours, on parameters, and on the paper's."""
    spread = {"sd": "standard deviation", "ci95": "half of a 95% interval of the mean"}
    notes = []
    if any(cell.ours for block in made for row in block.rows for cell in row.cells):
        notes.append(
            f"Ours: the {table['report']} of (n) runs on {table['scored_on']}, each at its "
            f"{table['choose']} evaluation, ± the {spread[table['spread']]}; the protocol has "
            f"{table['seeds']} seeds."
        )
    if any(row.parameters for block in made for row in block.rows):
        notes.append(parameters.NOTE)
    paper = [c.published for block in made for row in block.rows for c in row.cells if c.published]
    if paper:
        kinds = dict.fromkeys(
            f"{cell.protocol}, {cell.seeds or 'unknown'} seeds" for cell in paper if cell
        )
        first = paper[0]
        notes.append(
            f"Published: {first.paper}, {first.table} ({first.source}): {'; '.join(kinds)}."
        )
    return notes


def _starts(table: Mapping[str, Any], runs: tuple[recorded_runs.Run, ...]) -> list[str]:
    """Notes on the cells whose runs did not start from another adapter, as the paper's did."""
    lacking: dict[tuple[str, str, str], int] = {}
    for run in runs:
        _, row, column = run.place
        if column in table["start_from"].get(row, ()) and not run.config.start_from:
            lacking[run.place] = lacking.get(run.place, 0) + 1
    return [
        f"{model}, {row}, {column}: {count} of our runs did not start from an MNLI adapter, as the "
        "paper's did."
        for (model, row, column), count in lacking.items()
    ]


def _given_models(runs: tuple[recorded_runs.Run, ...]) -> list[str]:
    """Notes on the models that runs were given by another name than the config's, as a folder."""
    given = {
        (run.model, run.config.model.name + " on generated data" * _generated(run))
        for run in runs
        if run.config.model.name != MODELS.get(run.study.model) or _generated(run)
    }
    return [f"{model}: our runs are of {name}." for model, name in sorted(given)]


def _generated(run: recorded_runs.Run) -> bool:
    return is_generated(run.config.data.name, run.config.data.source)


def _changes(module: ModuleType, runs: tuple[recorded_runs.Run, ...]) -> list[str]:
    """Notes on the cells that were run with other settings than the config's (the paper's)."""
    cells = {run.place: run for run in runs}  # all runs of a cell have the same settings
    notes = []
    for place, run in cells.items():
        if (config := _config_of(module, run)) is None:
            continue
        own, ours = recorded_runs.settings_of(config), run.settings
        changed = [
            f"{key} is {ours[key]} in place of {own[key]}"
            for key in sorted(own.keys() & ours.keys() - GIVEN)
            if own[key] != ours[key] and key != "start_from"
        ]
        if changed:
            notes.append(
                f"{', '.join(place)}: our runs are not the config's: {'; '.join(changed)}."
            )
    return notes


def _config_of(module: ModuleType, run: recorded_runs.Run) -> RunConfig | None:
    """The config with the same `study` section as a run; None if there is none."""
    study = run.study
    known = {"model": study.model, "task": study.column, "size": study.size}
    lists = {
        key: (known[key],) if key in known else values
        for key, values in module.ARGUMENTS.items()
        if isinstance(values, tuple)
    }
    if "source" in lists:  # not compared: one value is enough
        lists["source"] = lists["source"][:1]
    for values in itertools.product(*lists.values()):
        arg = ",".join(f"{key}={value}" for key, value in zip(lists, values, strict=True))
        try:
            config = module.get_config(arg)
        except ValueError:  # no such model or task, or not in this combination
            continue
        if Study(**config.study) == study:
            return of_record(plain(filled(config.to_dict())))
    return None
