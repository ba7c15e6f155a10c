"""The soak itself, in small: a few kills, flipped bits and places."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.soaking import (
    forked,
    kills,
    malformed,
    not_finite,
    parts,
    result_file,
    small_study,
    surroundings,
)
from experiments.soaking.forked import Plan
from lora_jax.files import json_text

ROOT = Path(__file__).parents[2]


TIMED = kills.Kill("time", 3.25, missed=False)


def test_a_share_is_never_lost():
    assert parts.divided(100, [5, 2, 1, 4, 2]) == [35, 15, 7, 28, 15]
    assert parts.divided(2, [60, 40]) == [1, 1] and sum(parts.divided(7, [3, 3, 3])) == 7


def test_a_process_is_killed_at_a_change_of_a_file(tmp_path, monkeypatch):
    """`changes` makes a folder, a file in it, and gives the file another name."""
    (tmp_path / "changes.py").write_text(
        "import os, sys\n"
        "os.mkdir(sys.argv[1])\n"
        "open(sys.argv[1] + '/a', 'w').close()\n"
        "open(sys.argv[1] + '/a').close()\n"
        "os.rename(sys.argv[1] + '/a', sys.argv[1] + '/b')\n"
    )
    monkeypatch.setattr(forked, "_CONTEXT", forked.multiprocessing.get_context("fork"))
    monkeypatch.syspath_prepend(tmp_path)
    left = {}
    for number in range(1, 5):
        folder = tmp_path / str(number)
        plan = Plan(kill_at=number, below=str(folder), count=str(tmp_path / "count"))
        ended = forked.run(["changes", str(folder)], {}, plan)
        assert ended.code == (-signal.SIGKILL if number < 4 else 0), ended.err
        left[number] = sorted(path.name for path in folder.glob("*")) if folder.exists() else None
    assert left == {1: None, 2: [], 3: ["a"], 4: ["b"]}
    assert (tmp_path / "count").read_text() == "3"


WRITES = """
import os, sys, time
made = sys.argv[1] + "/made"
if not os.path.exists(made):
    with open(sys.argv[1] + "/begun", "a") as file:
        file.write(sys.argv[2])
    time.sleep(0.02)
    os.rename(sys.argv[1] + "/begun", made)
"""
"""A command that appends to what a killed one has left; without a text, that is no fault."""


@pytest.mark.parametrize("text", ["", "more"])
def test_each_kill_is_kept_with_its_moment_and_what_came_of_it(tmp_path, monkeypatch, text):
    (tmp_path / "writes.py").write_text(WRITES)
    monkeypatch.setattr(forked, "_CONTEXT", forked.multiprocessing.get_context("fork"))
    monkeypatch.syspath_prepend(tmp_path)
    work = kills.Work(
        "write",
        lambda folder: ["writes", str(folder), text],
        lambda folder: {each.name: each.read_text() for each in folder.glob("made")},
    )
    given = work, 5, 5, tmp_path / "scratch", {}  # this seed begins with a change
    rounds = list(kills.soak(*given))
    rows = json.loads(json.dumps([dataclasses.asdict(each) for each in rounds]))
    assert [kills.Round.of_row(each) for each in rows] == rounds
    assert [each.number for each in rounds] == [*range(1, len(rounds) + 1)]
    tried = [kill for each in rounds for kill in each.kills]
    assert sum(not kill.missed for kill in tried) == 5
    for each in rounds:
        assert each.changes == 2  # it opens a file, and gives it another name
        most = {"time": each.seconds, "change": 2}
        assert all(0 <= kill.at <= most[kill.kind] for kill in each.kills)
    begun = rounds[0]
    assert begun.kills[0] == kills.Kill("change", 2, missed=False)
    assert begun.outcome == ("made differs" if text else "equal")
    assert text or kills.wrong(rounds) == []

    assert list(kills.soak(*given, before=rounds)) == []
    after = next(kills.soak(*given, before=rounds[:1]))  # of a soak that was stopped there
    assert after.number == 2 and after.kills[0].kind == rounds[1].kills[0].kind


def test_kills_are_counted_by_kind():
    rounds = [
        kills.Round("train", 1, 8.0, 130, [TIMED, kills.Kill("change", 17, False)], "equal"),
        kills.Round("sweep", 1, 9.0, 12, [kills.Kill("worker", 2.5, False)], "a/record differs"),
        kills.Round("train", 2, 8.0, 130, [kills.Kill("change", 99, True), TIMED], "equal"),
    ]
    kinds = "work", "kills", "by_time", "by_change", "of_worker", "rounds", "missed"
    train, sweep = ("train", 3, 2, 1, 0, 2, 1), ("sweep", 1, 0, 0, 1, 1, 0)
    assert kills.counts(rounds) == [dict(zip(kinds, each, strict=True)) for each in (train, sweep)]
    assert kills.wrong(rounds) == ["sweep, round 1: a/record differs"]


def test_results_of_other_settings_or_code_are_not_replaced(tmp_path):
    result_file.write(tmp_path, "kills-train", {"seed": 0}, [{"kills": 1}])
    assert result_file.read(tmp_path, "kills-train", {"seed": 0}) == [{"kills": 1}]
    with pytest.raises(ValueError, match="has results of other settings: name another --out"):
        result_file.read(tmp_path, "kills-train", {"seed": 1})
    path = tmp_path / "kills-train.json"
    content = json_text.read_object(path)
    path.write_text(json.dumps({**content, "versions": {"jax": "0.1"}}))
    with pytest.raises(ValueError, match=r"kills-train\.json has results of other code: name anot"):
        result_file.read(tmp_path, "kills-train", {"seed": 0})


SURROUNDINGS = [
    surroundings.Met("two processes", "wrong", "a traceback"),
    surroundings.Met("full disk", "not tried", "only the superuser mounts disks"),
]
MALFORMED = [
    malformed.Tried("flags", "seed", "executed", "a shell"),
    malformed.Tried("flags", "seed", "refused", "no number"),
]
NOT_FINITE = [
    not_finite.Planted("the loss", "nan", "diverged", "at step 1"),
    not_finite.Planted("the loss", "inf", "unnoticed", ""),
]


@pytest.mark.parametrize(
    ("name", "part", "found"),
    [
        ("surroundings", surroundings, SURROUNDINGS),
        ("not_finite", not_finite, NOT_FINITE),
        ("malformed", malformed, MALFORMED),
    ],
)
def test_a_part_that_is_complete_is_not_tried_again(tmp_path, monkeypatch, name, part, found):
    """And says the same of what was wrong."""
    monkeypatch.setattr(parts, "_inputs", lambda order: None)
    monkeypatch.setattr(parts, "_finished", lambda order, given: tmp_path)
    order = parts.Order(tmp_path, tmp_path, seed=0, kills=1, flips=1, examples=2)
    monkeypatch.setattr(part, "soak", lambda *_: found)
    first = parts.PARTS[name](order)
    assert len(first.wrong) == 1
    monkeypatch.setattr(part, "soak", lambda *_: pytest.fail("it was tried again"))
    assert parts.PARTS[name](order) == first


def test_surroundings_that_were_stopped_are_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_inputs", lambda order: None)
    monkeypatch.setattr(parts, "_finished", lambda order, given: tmp_path)
    order = parts.Order(tmp_path, tmp_path, seed=0, kills=1, flips=1, examples=2)
    assert not surroundings.complete([])
    for tried in (SURROUNDINGS[:1], SURROUNDINGS):
        monkeypatch.setattr(surroundings, "soak", lambda *_, tried=tried: iter(tried))
        parts.PARTS["surroundings"](order)
        kept = json_text.read_object(tmp_path / "surroundings.json")["rows"]
        assert len(kept) == len(tried)
    rows = json_text.read_object(ROOT / "experiments/results/soak/surroundings.json")["rows"]
    met = [surroundings.Met(**each) for each in rows]  # of a superuser
    assert surroundings.complete(met) and not surroundings.complete(met[:-1])


def test_the_small_study_s_runs_name_its_table():
    config = small_study.get_config("train=train.tsv,validation=validation.tsv")
    assert config.study.table == "small_study"


@pytest.mark.filterwarnings("ignore:the load_module")
def test_the_command_and_the_page_name_all_files_that_are_damaged(tmp_path):
    order = parts.Order(tmp_path, tmp_path, seed=0, kills=1, flips=1, examples=1)
    names = [each.name for each in parts._subjects(order)]
    assert len({*names}) == len(names) == 17
    command = (ROOT / "experiments/soak.py").read_text(encoding="utf-8")
    page = (ROOT / "docs/reference/hardening.md").read_text(encoding="utf-8")
    for name in names:
        assert re.search(rf"\b{name}\b", command) and f"`{name}`" in page, name


COUNTS = {"finished-run": 6, "newest-checkpoint": 2, "texts": 1, "seen": 1, "made-runs": 1}
COUNTS |= {"kept-tokens": 2}
"""Of 30 changes."""


@pytest.mark.slow
def test_a_small_soak_finds_nothing(tmp_path):
    line = [sys.executable, "-m", "experiments.soak", f"--out={tmp_path / 'out'}"]
    line += [f"--scratch={tmp_path / 'scratch'}", "--parts=kills,damage", "--kills=3", "--flips=30"]
    line += ["--commands=train", f"--files={','.join(COUNTS)}"]
    environment = {**os.environ, "XLA_FLAGS": ""}  # programs as users have them
    ended = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr.startswith("devices: ")
    rounds = json_text.read_object(tmp_path / "out" / "kills-train.json")["rows"]
    met = [kill for each in rounds for kill in each["kills"] if not kill["missed"]]
    assert len(met) == 1 and {each["outcome"] for each in rounds} == {"equal"}
    for name, count in COUNTS.items():
        rows = json_text.read_object(tmp_path / "out" / f"damage-{name}.json")["rows"]
        assert len(rows) == count
        assert {row["outcome"] for row in rows} <= {"found", "healed", "harmless"}
