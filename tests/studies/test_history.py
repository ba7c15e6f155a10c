"""Whether git's history shows that a study.json was committed before the study's runs."""

import subprocess
import types

import pytest
from test_registration import CELLS, PROTOCOL

from experiments.studies import registration


def git(folder, *line):
    ended = subprocess.run(["git", "-C", folder, *line], check=True, capture_output=True, text=True)
    return ended.stdout.strip()


def commit(folder, *names):
    """Commit files, or nothing; the new commit."""
    if names:
        git(folder, "add", *names)
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "A step")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2026-03-04T12:00:00+00:00")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "Somebody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "somebody@example.org")
    git(folder, "init", "--quiet")
    (folder / ".gitignore").write_text("/runs/\n")
    commit(folder, ".gitignore")
    return folder


def said(folder, *commits):
    """What is said of runs that were made at these commits; None for a run that names none."""
    made = [None if each is None else {"commit": each, "dirty": False} for each in commits]
    runs = [types.SimpleNamespace(record=types.SimpleNamespace(git=each)) for each in made]
    return registration.committed(folder, registration.read(folder), runs)


def register(folder):
    folder.mkdir(exist_ok=True, parents=True)
    return registration.register(folder, "mine", PROTOCOL, CELLS)


def test_the_history_is_asked_for_the_content(repository, tmp_path):
    """The file may be a copy of one that lies elsewhere, and may have been moved."""
    runs, results = repository / "runs" / "mine", repository / "results"
    written = register(runs).written
    first = commit(repository)
    only = f"only its own date, {written}, and the digest"
    assert said(runs, first).startswith(f"study.json is not committed: {only}")
    register(results)  # another day's would be another content
    (results / "study.json").write_bytes((runs / "study.json").read_bytes())
    second = commit(repository, "results")
    git(repository, "mv", "results/study.json", "study.json")
    third = commit(repository, "study.json")
    began = f"study.json was committed in {second[:10]} on 2026-03-04"
    assert said(runs) == f"{began}, before any run."
    before = f"{began}, before its runs: each was made at a commit that has it."
    assert said(runs, second, third) == said(repository, third, third) == before
    after = said(runs, first, None, "0" * 40, third)
    assert after.startswith(f"{began}. Of its 4 runs, 3 name no commit that has it, and the")
    assert only in after

    commit(repository)
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository}", str(shallow))
    assert said(shallow, third).startswith("This clone does not reach back to the first commit of")


def test_a_new_registration_comes_with_the_commands_that_commit_it(repository):
    for place in ("kept study", "runs/8"):  # the second is ignored
        folder = repository / place
        register(folder)
        commands = registration.how_to_commit(folder, "mine").partition("first: ")[2]
        subprocess.run(commands, shell=True, check=True, cwd=repository)
        assert f"{place}/study.json" in git(repository, "ls-files")
        assert said(folder).endswith("before any run.")
