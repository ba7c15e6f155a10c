"""Say from git's history whether a registration was committed before its runs were made.

A study.json is looked for by its content, wherever it lies, because runs may be made in one folder
and committed in another.
"""

import hashlib
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from experiments.analysis.recorded_runs import REGISTRATION, Run
from experiments.studies.registration import Registration

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
    found = _git(folder, "log", "--no-renames", f"--find-object={_blob(folder)}", _FORMAT)
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
    path, kept, lines = folder / REGISTRATION, folder, list[list[str]]()
    if _git(folder, "rev-parse", "--git-dir") is None:
        return ""
    ignored = _git(folder, "check-ignore", "--quiet", REGISTRATION) is not None
    if ignored:
        kept = Path("experiments/results", *dict.fromkeys((study, folder.name)))
        lines += [["mkdir", "-p", str(kept)], ["cp", str(path), str(kept)]]
    for given in (["add"], ["commit", "-m", f"Register {study}"]):
        lines.append(["git", "-C", str(kept), *given, REGISTRATION])
    why = f" (git ignores {folder}; any folder that it keeps will do)" * ignored
    return (
        f"{path} is new. Commit it before runs are made, and the report can say that it came "
        f"first{why}: {' && '.join(shlex.join(each) for each in lines)}"
    )


def _blob(folder: Path) -> str:
    """The name that git gives to the content of a folder's study.json."""
    content = (folder / REGISTRATION).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says in a folder; None where it fails: there is no git, no repository, ..."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
