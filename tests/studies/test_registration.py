"""A study is registered once, as a whole; git's history shows when; and its rule for rates."""

import dataclasses
import errno
import itertools
import json
import os
import subprocess
import types

import pytest

from configs import quickstart
from experiments.analysis.recorded_runs import REGISTRATION
from experiments.runs import folder_lock
from experiments.setup.config import fill
from experiments.studies import protocol, registration
from experiments.studies.protocol import Protocol, Rates
from experiments.studies.registration import Planned
from lora_jax.records.environment import environment

PLAIN = {
    "rows": ["lora", "dora"],
    "columns": ["cola"],
    "reference": "lora",
    "rates": {"per_decade": 2, "around": 2, "most_more": 1},
    "tuning": {"held_out": 400, "seeds": [100]},
    "seeds": [0, 1],
    "margin": 1,
}
PROTOCOL = Protocol.of(PLAIN, "STUDY")
CELLS = {"cola": {"lora": Planned("a", 1e-3), "dora": Planned("b", 1e-3)}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"row": ["lora"]}, r"STUDY: unknown setting 'row'; nearest: 'rows'"),
        ({"reference": "lorra"}, r"unknown reference 'lorra'; nearest: 'lora'"),
        ({"compare": "pair"}, r"unknown compare 'pair'; nearest: 'pairs'"),
        ({"seeds": [0, 0]}, r"seeds must be different"),
        ({"seeds": [0, 100]}, r"seed 100 both chooses a rate and is scored"),
        ({"margin": 0}, r"margin must be above 0"),
        ({"level": 0.5}, r"level between 0 and 0\.5"),
        ({"rates": {"per_decade": 40, "around": 2, "most_more": 1}}, r"per_decade from 1 to 20"),
        ({"margin": "1"}, r"margin must be of type float, got '1'"),
        ({"rates": {"per_decade": 2, "around": 2}}, r"rates: most_more is missing"),
        ({"rates": [1, 2]}, r"rates must be a mapping"),
        ({"seeds": "0:5"}, r"seeds must be a list"),
        ({"tuning": {"held_out": 400, "seeds": []}}, r"tuning needs seeds"),
    ],
)
def test_a_wrong_protocol_is_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=said):
        Protocol.of({**PLAIN, **changes}, "STUDY")


def test_a_registration_is_written_once_and_read_as_it_was(tmp_path):
    budgets = {"cola": registration.Budget("matthews", 2000, 8.0, 0, 16)}
    table = {"rows": {"dora": "DoRA of mine"}}
    first = registration.register(tmp_path, "mine", PROTOCOL, CELLS, budgets, table)
    written = (tmp_path / REGISTRATION).read_bytes()
    content = json.loads(written)
    assert first.budgets == budgets and content["budgets"]["cola"]["epochs"] == 8
    assert content["family"]["tests"] == 1 and "lora" in content["family"]["compares"]
    assert (first.study, first.protocol, first.cells) == ("mine", PROTOCOL, CELLS)
    assert registration.register(tmp_path, "mine", PROTOCOL, CELLS) == first
    assert registration.read(tmp_path) == first and registration.below(tmp_path) == [first]
    assert first.table == table
    assert (tmp_path / REGISTRATION).read_bytes() == written
    assert registration.read(tmp_path / "elsewhere") is None


def test_of_two_registrations_at_once_one_stays(tmp_path, monkeypatch):
    known = []

    def meanwhile():
        monkeypatch.undo()
        known.append(registration.register(tmp_path, "mine", PROTOCOL, CELLS, table={"title": "A"}))
        return environment()

    monkeypatch.setattr(registration, "environment", meanwhile)
    found = registration.register(tmp_path, "mine", PROTOCOL, CELLS, table={"title": "B"})
    assert [found] == known and found.table == {"title": "A"}


def test_a_folder_that_another_process_has_is_not_registered(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "GRACE", 0)
    with folder_lock.alone(tmp_path), pytest.raises(ValueError, match="is training there"):
        registration.register(tmp_path, "mine", PROTOCOL, CELLS)
    assert not any(tmp_path.iterdir())


def test_a_registration_that_is_not_whole_is_none(tmp_path, monkeypatch):
    def no_space(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=REGISTRATION):
        patch.setattr(os, "fsync", no_space)
        registration.register(tmp_path, "mine", PROTOCOL, CELLS)
    assert registration.read(tmp_path) is None
    registration.register(tmp_path, "mine", PROTOCOL, CELLS)


def test_a_family_of_pairs_is_as_large_as_registered(tmp_path):
    four = {**PLAIN, "rows": ["lora", "dora", "vera", "pissa"], "compare": "pairs"}
    registration.register(tmp_path, "mine", Protocol.of(four, "STUDY"), {})
    family = json.loads((tmp_path / REGISTRATION).read_text())["family"]
    assert family["tests"] == 6 and "each two methods" in family["compares"]
    with pytest.raises(ValueError, match="another compare: a registered study cannot change"):
        plain = Protocol.of(four | {"compare": "reference"}, "STUDY")
        registration.register(tmp_path, "mine", plain, {})


def test_another_protocol_or_other_settings_are_refused(tmp_path):
    registration.register(tmp_path, "mine", PROTOCOL, CELLS)
    wider = dataclasses.replace(PROTOCOL, margin=2.0)
    with pytest.raises(ValueError, match="another margin: a registered study cannot change"):
        registration.register(tmp_path, "mine", wider, CELLS)
    moved = {"cola": {**CELLS["cola"], "dora": Planned("c", 1e-3)}}
    with pytest.raises(ValueError, match="another config of dora on cola"):
        registration.register(tmp_path, "mine", PROTOCOL, moved)
    with pytest.raises(ValueError, match="registers study 'mine', not 'yours'"):
        registration.register(tmp_path, "yours", PROTOCOL, CELLS)


def test_a_changed_file_is_noticed(tmp_path):
    registration.register(tmp_path, "mine", PROTOCOL, CELLS)
    path = tmp_path / REGISTRATION
    content = json.loads(path.read_text())
    content["protocol"]["margin"] = 5.0
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="changed after it was written"):
        registration.read(tmp_path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a registration of version"):
        registration.read(tmp_path)


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


def test_without_git_nothing_is_known(repository, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    register(outside)
    unknown = "No git history of study.json is here: only its own date"
    assert said(outside, "0" * 40).startswith(unknown)
    assert registration.how_to_commit(outside, "mine") == ""
    register(repository)
    commit(repository, "study.json")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert said(repository, "0" * 40).startswith(unknown)


def test_a_new_registration_comes_with_the_commands_that_commit_it(repository):
    for place in ("kept study", "runs/8"):  # the second is ignored
        folder = repository / place
        register(folder)
        commands = registration.how_to_commit(folder, "mine").partition("first: ")[2]
        subprocess.run(commands, shell=True, check=True, cwd=repository)
        assert f"{place}/study.json" in git(repository, "ls-files")
        assert said(folder).endswith("before any run.")


RULE = Rates(per_decade=2, around=2, most_more=2)


def test_half_decades_around_the_middle():
    grid = [protocol.rate_at(1e-3, place, RULE.per_decade) for place in protocol.first_places(RULE)]
    assert grid == [1e-4, 3.2e-4, 1e-3, 3.2e-3, 1e-2]
    quarter = [protocol.rate_at(2e-3, place, 4) for place in range(-4, 5)]
    assert quarter[::4] == [2e-4, 2e-3, 2e-2]
    ratios = [high / low for low, high in itertools.pairwise(quarter)]
    assert ratios == pytest.approx([10**0.25] * 8, rel=0.03)  # of two digits


def test_a_best_rate_at_an_edge_gives_all_one_more_on_that_side():
    start = protocol.first_places(RULE)
    assert protocol.grown(start, [0, 1, -1], RULE) == start
    assert protocol.grown(start, [0, 2], RULE) == range(-2, 4)
    assert protocol.grown(start, [-2, 2], RULE) == range(-3, 4)
    assert protocol.grown(range(-2, 4), [2, 0], RULE) == range(-2, 4)
    assert protocol.grown(range(-4, 5), [-4, 4], RULE) == range(-4, 5)  # as far as the rule goes


@pytest.fixture(scope="module")
def config():
    """A recorded config."""
    return fill(quickstart.get_config("size=smoke").to_dict())


@pytest.fixture
def record(config):
    """Makes records of runs that save the adapter of the last evaluation, or of the best one."""

    def make(last, metric="accuracy", status="completed", select="last", best=None):
        metrics = {"metrics_last": {metric: last}, "metrics_best": {metric: best}}
        own = {**config, "train": {**config["train"], "select": select}}
        return types.SimpleNamespace(metric=metric, status=status, config=own, **metrics)

    return make


def test_the_best_place_has_the_best_mean_and_is_the_lowest_of_equal_ones(record):
    scores = {1: [0.4, 0.6], 0: [0.5, 0.5], -1: [0.2, 0.3]}
    for metric, best in (("accuracy", 0), ("perplexity", -1)):
        tried = {place: [record(s, metric) for s in own] for place, own in scores.items()}
        assert protocol.best_place(tried) == best
    # Of 1,000 sentences each: equal sums, whose means differ by a rounding.
    right = {0: (813, 815), 1: (812, 816)}
    tried = {place: [record(n / 1000) for n in own] for place, own in right.items()}
    assert len({sum(each.metrics_last["accuracy"] for each in own) for own in tried.values()}) == 2
    assert protocol.best_place(tried) == 0


def test_the_score_is_that_of_the_adapter_that_a_run_saved(record):
    """A rate that ends badly may have the better best evaluation, and the reverse."""
    scores = {0: {"last": 0.6, "best": 0.7}, 1: {"last": 0.5, "best": 0.8}}
    for select, best in (("last", 0), ("best", 1)):
        tried = {place: [record(select=select, **own)] for place, own in scores.items()}
        assert protocol.best_place(tried) == best
        (of_one,) = protocol.saved_scores(tried[1])
        assert of_one == scores[1][select]


def test_a_place_where_a_run_did_not_end_is_not_the_best(record):
    diverged, unscored = record(0.9, status="diverged"), record(None)
    tried = {0: [record(0.5)], 1: [record(0.9), diverged], 2: [record(0.9), unscored]}
    assert protocol.best_place(tried) == 0
    assert protocol.best_place({1: [diverged]}) is None
