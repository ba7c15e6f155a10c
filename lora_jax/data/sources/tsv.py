"""GLUE and SuperGLUE from a folder in the official layout: one folder per task, TSV or JSONL."""

import re
from pathlib import Path
from typing import Any

from lora_jax.data.sources import rows
from lora_jax.data.task import Task
from lora_jax.data.tasks import SPECS, Record, TaskPart, TaskSpec, assemble
from lora_jax.files import number_text
from lora_jax.messages import nearest


def load(name: str, folder: str | Path) -> Task:
    """Load the task `name` of `lora_jax.data.tasks.SPECS` from `folder`.

    The folder holds the tasks' folders (`CoLA`, `SST-2`, ...), holds a folder such as `glue_data`
    or `super_glue` with them, or is itself the task's folder. Raises `FileNotFoundError` if a
    labelled part is missing (the message lists what is there), and `ValueError` for a row that
    cannot be read.
    """

    def read(name: str, spec: TaskSpec, part: TaskPart) -> list[Record] | None:
        place = find(Path(folder), spec)
        for file in part.files:
            if (place / file).is_file():
                return read_part(place / file, spec, part)
        files = [file for each in spec.parts for file in each.files]
        if spec.trained_on and any((place / file).is_file() for file in files):
            return None
        if part.labelled or spec.trained_on:
            raise FileNotFoundError(
                f"{place} has no {part.files[0]} for {name}; it has {_listed(place)}"
            )
        return None

    return assemble(name, read)


def ways(name: str) -> str:
    """How to get the data of a task, as the end of a message."""
    site = "super.gluebenchmark" if name.startswith("super_glue/") else "gluebenchmark"
    return (
        f"give a folder with the files of https://{site}.com/tasks (source=tsv,folder=FOLDER), or "
        "let tensorflow-datasets download them (source=tfds), or try size=smoke without a folder, "
        "on generated data"
    )


def find(folder: Path, spec: TaskSpec) -> Path:
    """The folder of a task: in `folder`, in a folder inside it, or `folder` itself."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    wanted = {_plain(name) for name in spec.folders}
    inside = _folders(folder)
    benchmarks = {_plain(name.partition("/")[0]) for name in SPECS}
    benchmarks |= {f"{name}data" for name in benchmarks}
    named = (each for each in inside if _plain(each.name) in benchmarks)
    holders = [folder, *named]
    places = [each for holder in holders for each in _folders(holder)]
    places = [each for each in [*places, folder] if _plain(each.name) in wanted]
    if not places:
        raise FileNotFoundError(
            f"{folder} has no folder {spec.folders[0]}; it has {_listed(folder)}"
        )
    # RTE is in both benchmarks: the files tell them apart.
    files = [file for part in spec.parts for file in part.files]
    fitting = [each for each in places if any((each / file).is_file() for file in files)]
    return (fitting or places)[0]


def read_part(path: Path, spec: TaskSpec, part: TaskPart) -> list[Record]:
    """The records of one official file, sorted by `idx` if all have one."""
    found = rows.read_rows(path, spec.header if part.labelled else (), any_width=True)
    columns, target = part.columns or spec.columns, part.label or spec.label
    needed = (*columns.values(), *([target] if part.labelled else []))
    for column in needed:
        if found and not any(column in row.values for row in found):
            known = dict.fromkeys(key for row in found for key in row.values)
            raise ValueError(f"{path} has no column '{column}'; nearest: {nearest(column, known)}")
    if all(isinstance(row.values.get("idx"), int) for row in found):
        found.sort(key=lambda row: row.values["idx"])
    records = []
    for row in found:
        missing = any(row.values.get(each) is None for each in needed)
        if spec.skip_incomplete and (missing or (part.labelled and row.values[target] == "")):
            continue
        values = {name: row.text(column) for name, column in columns.items()}
        label = _label(row, target, spec.label_names) if part.labelled else None
        records.append(Record(values, label))
    return records


def _label(row: rows.Row, column: str, names: tuple[str, ...] | None) -> int | float:
    """The class number, from a class's name or number; or a regression's target."""
    value: Any = row.value(column)
    if names is None:
        if (target := rows.target(str(value))) is not None:
            return target
    else:
        number = number_text.read(str(value))
        if isinstance(value, str | bool) and str(value) in names:
            return names.index(str(value))
        if number is not None and rows.whole(number) and 0 <= number < len(names):
            return int(number)
    expected = "a number in the range of float32" if names is None else f"one of {', '.join(names)}"
    raise ValueError(f"{row.where}: '{column}' is {rows.shown(value)}, not {expected}")


def _plain(name: str) -> str:
    """A folder's name without case and punctuation: `SST-2` and `sst_2` both give `sst2`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _folders(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir())


def _listed(folder: Path) -> str:
    names = sorted(each.name for each in folder.iterdir())
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "nothing"
