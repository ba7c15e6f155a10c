"""The soak itself, in small: a few kills, flipped bits and places."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.soaking import (
    forked,
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


@pytest.mark.slow
def test_a_small_soak_finds_nothing(tmp_path):
    line = [sys.executable, "-m", "experiments.soak", f"--out={tmp_path / 'out'}"]
    line += [f"--scratch={tmp_path / 'scratch'}", "--parts=kills,damage", "--kills=3", "--flips=30"]
    line += ["--commands=train", "--files=finished-run,newest-checkpoint,kept-tokens"]
    environment = {**os.environ, "XLA_FLAGS": ""}  # programs as users have them
    ended = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr.startswith("devices: ")
    (train,) = json_text.read_object(tmp_path / "out" / "kills-train.json")["rows"]
    assert train["kills"] == 1 and train["wrong"] == []
    for name, count in (("finished-run", 8), ("newest-checkpoint", 3), ("kept-tokens", 3)):
        rows = json_text.read_object(tmp_path / "out" / f"damage-{name}.json")["rows"]
        assert len(rows) == count
        assert {row["outcome"] for row in rows} <= {"found", "healed", "harmless"}
