"""Register a study: write its protocol into its folder before the first run, and never again.

`study.json` holds the protocol, the families of tests, the metric and budget of each task, the
settings of all cells (a method on a task) as digests, and when and by which commit it was written.
Its own digest is a setting of each run (`study.registration`), so a run that was there before
cannot have it, and the file cannot be changed after.

Say from git's history whether a registration was committed before its runs were made.

A study.json is looked for by its content, wherever it lies, because runs may be made in one folder
and committed in another.
"""

import dataclasses
import datetime
import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experiments.analysis.recorded_runs import REGISTRATION, Run
from experiments.runs.folder_lock import alone
from experiments.studies.protocol import Protocol, typed
from lora_jax.files import json_text
from lora_jax.files.atomic import write_atomically
from lora_jax.files.json_text import config_digest, plain
from lora_jax.records.environment import environment

_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Planned:
    """What is registered of a cell: a method on a task."""

    settings: str
    """The digest of all settings that its runs share (`training.cell_digest`)."""
    middle: float
    """The middle of its learning rates."""


Cells = Mapping[str, Mapping[str, Planned]]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a reader sees of a task: the digests of cells hold each method to its own settings."""

    metric: str
    """The main metric of every run."""
    examples: int
    """How many training examples a run of the reference sees; 0 for all."""
    epochs: float
    max_steps: int
    """The most steps; 0 for no limit beside the epochs."""
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Registration:
    """What a study.json says."""

    study: str
    protocol: Protocol
    cells: Cells
    """By task and method."""
    budgets: Mapping[str, Budget]
    """By task; empty in a registration of an earlier version."""
    table: Mapping[str, Any]
    """How reports show its runs (`configs.common_tasks.table`), without its config file; may be
    empty."""
    written: str
    """UTC, in ISO 8601."""
    git: Mapping[str, Any] | None
    digest: str
    """Of all of this."""


def register(
    folder: Path,
    study: str,
    protocol: Protocol,
    cells: Cells,
    budgets: Mapping[str, Budget] = MappingProxyType({}),
    table: Mapping[str, Any] = MappingProxyType({}),
) -> Registration:
    """Write a study's registration, or read it if it is there and says the same.

    Args:
      budgets: by task, for a new registration; one that is there is not compared with them.
      table: the same; it is the TABLE of the config file.

    Raises:
      ValueError: the folder has one that says something else, or was changed, or another process
        has the folder.
    """
    if read(folder) is None:
        content = {
            "version": _VERSION,
            "study": study,
            "protocol": dataclasses.asdict(protocol),
            "family": _family(protocol),
            "budgets": {task: dataclasses.asdict(each) for task, each in budgets.items()},
            "cells": {
                task: {row: dataclasses.asdict(each) for row, each in rows.items()}
                for task, rows in cells.items()
            },
            "table": table,
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "git": environment()["git"],
        }
        text = json.dumps(plain(content) | {"digest": config_digest(content)}, indent=1) + "\n"
        with alone(folder):
            if read(folder) is None:  # else another process has just written it
                write_atomically(folder / REGISTRATION, text.encode())
    known = read(folder)
    assert known is not None
    if known.study != study:
        raise ValueError(f"{folder / REGISTRATION} registers study '{known.study}', not '{study}'")
    if said := _difference(known, protocol, cells):
        raise ValueError(
            f"{folder / REGISTRATION} was registered with another {said}: a registered study "
            "cannot change; give another --workdir for a new one"
        )
    return known


def read(folder: Path) -> Registration | None:
    """The registration in a folder; None if there is none.

    Raises:
      ValueError: the file is not a registration, or was changed.
    """
    path = folder / REGISTRATION
    if not path.exists():
        return None
    content = json_text.read_object(path)
    if content.get("version") != _VERSION:
        raise ValueError(f"{path} is not a registration of version {_VERSION}")
    body = {name: value for name, value in content.items() if name != "digest"}
    if content.get("digest") != config_digest(body):
        raise ValueError(f"{path} was changed after it was written: its digest is another one")
    given = {name: content[name] for name in ("study", "written", "git", "digest")}
    cells = {
        task: {row: typed(Planned, each, str(path)) for row, each in rows.items()}
        for task, rows in content["cells"].items()
    }
    protocol = Protocol.of(content["protocol"], str(path))
    known = content.get("budgets", {}).items()
    budgets = {task: typed(Budget, each, str(path)) for task, each in known}
    table = content.get("table", {})
    return Registration(protocol=protocol, cells=cells, budgets=budgets, table=table, **given)


def below(folder: Path) -> list[Registration]:
    """The registrations in and below a folder.

    Raises:
      ValueError: a file is not a registration, or was changed.
    """
    found = [read(path.parent) for path in sorted(folder.rglob(REGISTRATION))]
    return [each for each in found if each is not None]


def _family(protocol: Protocol) -> dict[str, Any]:
    """How the study decides (`experiments.analysis.gains`), in words."""
    pairs = protocol.compare == "pairs"
    compared = "each two methods" if pairs else f"each other method with {protocol.reference}"
    return {
        "compares": f"{compared}: the mean difference over all tasks, paired by seed and example",
        "generalises": "to new seeds and new examples, where runs keep predictions; else to seeds",
        "tests": protocol.tests,
        "differences": "two-sided, by Holm's procedure",
        "equivalences": "two one-sided tests against the margin, by Holm's procedure",
    }


def _difference(known: Registration, protocol: Protocol, cells: Cells) -> str:
    for field in dataclasses.fields(Protocol):
        if getattr(known.protocol, field.name) != getattr(protocol, field.name):
            return field.name
    for task, rows in cells.items():
        for row, planned in rows.items():
            if known.cells.get(task, {}).get(row) != planned:
                return f"config of {row} on {task}"
    return ""


_FORMAT = "--format=%H%x09%cI%x09%D"
_SECONDS = 10
"""How long git may take; without an answer, nothing is known."""


def committed(folder: Path, registered: Registration, runs: Sequence[Run]) -> str:
    """A sentence on whether the study.json in a folder was committed before its runs were made.

    It was committed before a run if the commit that the record names has it already.

    Args:
      folder: in the git repository to ask; there may be none.
      runs: all runs of the study, those that chose rates, too.
    """
    own = (
        f"only its own date, {registered.written}, and the digest that each run carries say that "
        "it came before them"
    )
    blob = _git(folder, "hash-object", "--no-filters", REGISTRATION) or ""
    found = _git(folder, "log", "--no-renames", f"--find-object={blob.strip()}", _FORMAT)
    if found is None:
        return f"No git history of {REGISTRATION} is here: {own}."
    if not found:
        return f"{REGISTRATION} is not committed: {own}."
    commit, date, marks = found.splitlines()[-1].split("\t")
    if "grafted" in marks:
        return f"This clone does not reach back to the first commit of {REGISTRATION}: {own}."
    if not runs:
        return f"{REGISTRATION} was committed in {commit[:10]} on {date[:10]}, before any run."
    later = _git(folder, "rev-list", "--ancestry-path", f"{commit}..HEAD") or ""
    having = {commit, *later.split()}
    without = sum((run.record.git or {}).get("commit") not in having for run in runs)
    said = f"{REGISTRATION} was committed in {commit[:10]} on {date[:10]}"
    if not without:
        return f"{said}, before its runs: each was made at a commit that has it."
    return (
        f"{said}. Of its {len(runs)} runs, {without} name no commit that has it, and the history "
        f"does not show that it came before these: {own}."
    )


def how_to_commit(folder: Path, study: str) -> str:
    """A line on how to commit a new study.json; empty where there is no git repository."""
    if _git(folder, "rev-parse", "--git-dir") is None:
        return ""
    git = ["git", "-C", str(folder)]
    add = [*git, "add", "--force", REGISTRATION]
    commit = [*git, "commit", "-m", f"Register {study}", REGISTRATION]
    return (
        f"{folder / REGISTRATION} is new. Commit it before runs are made, and the report can say "
        f"that it came first: {shlex.join(add)} && {shlex.join(commit)}"
    )


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says in a folder; None where it fails: there is no git, no repository, ..."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
