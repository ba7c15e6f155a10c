"""The soak in small, and what it calls damage, kills and differences."""

import os
import random
import signal
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import damage
import kills
import pytest
import soak

ROOT = Path(__file__).parents[2]


def test_a_process_is_killed_at_a_change_of_a_file(tmp_path):
    """`changes.py` makes a folder, a file in it, and gives the file another name."""
    program = tmp_path / "changes.py"
    program.write_text(
        "import os, sys\n"
        "os.mkdir(sys.argv[1])\n"
        "open(sys.argv[1] + '/a', 'w').close()\n"
        "open(sys.argv[1] + '/a').close()\n"
        "os.rename(sys.argv[1] + '/a', sys.argv[1] + '/b')\n"
    )
    left = {}
    for number in range(1, 5):
        folder = tmp_path / str(number)
        line = [str(program), str(folder)]
        ended = kills.start(line, folder, kill_at=number, count=tmp_path / "count").end()
        assert ended.returncode == (-signal.SIGKILL if number < 4 else 0), ended.stderr
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
"""A command that appends to what a killed one has left; without a text, that is not a fault."""


@pytest.mark.parametrize("text", ["", "more"])
def test_a_result_that_a_kill_has_changed_is_seen(tmp_path, text):
    (tmp_path / "writes.py").write_text(WRITES)
    work = kills.Work(
        lambda folder: [str(tmp_path / "writes.py"), str(folder), text],
        lambda folder: {each.name: each.read_text() for each in folder.glob("made")},
    )
    lines = list(kills.rounds("write", work, 5, 5, tmp_path / "scratch"))
    moments = [line.split(": ")[1].split(", ") for line, _ in lines]
    assert sum(each != ["killed at no time"] for each in moments) <= 5 and len(lines) > 1
    wrong = [line for line, good in lines if not good]
    assert bool(wrong) == bool(text) and all(line.endswith("differs in made") for line in wrong)


def checked(folder):
    value, _, check = (folder / "value").read_text(encoding="utf-8").partition("\n")
    if f"{zlib.crc32(value.encode())}" != check:
        raise ValueError("value differs from its check")
    return value


def healed(folder):
    try:
        return checked(folder)
    except ValueError:
        warnings.warn("made again", stacklevel=1)
        return "[1, 2, 3]"


def careless(folder):
    return (folder / "value").read_bytes().hex()


def of_two_lines(folder):
    try:
        return checked(folder)
    except ValueError as error:
        raise ValueError(f"{error}\nand more") from error


@pytest.mark.parametrize(
    ("read", "outcome"),
    [(checked, "found"), (healed, "healed"), (careless, "silent"), (of_two_lines, "unclear")],
)
def test_each_way_to_take_damage_has_its_name(tmp_path, read, outcome):
    def make(folder):
        folder.mkdir()
        (folder / "value").write_text(f"[1, 2, 3]\n{zlib.crc32(b'[1, 2, 3]')}")

    subject = damage.Subject(make, lambda folder: [folder / "value"], read)
    found = list(damage.tries("value", subject, 30, 0, tmp_path / "tried"))
    assert len(found) == 30 and 0 < sum(", cut to " in line for line, _ in found) < 30
    assert all(f": {outcome}: " in line for line, _ in found)
    assert {good for _, good in found} == {outcome in damage.GOOD}


def test_damage_is_one_bit_or_a_shorter_file(tmp_path):
    path, content = tmp_path / "file", bytes(range(100))
    for seed in range(20):
        path.write_bytes(content)
        how = damage.spoil(path, random.Random(seed))
        found = path.read_bytes()
        if how.startswith("cut"):
            assert len(found) < 100 and content.startswith(found)
        else:
            flipped = [a ^ b for a, b in zip(content, found, strict=True) if a != b]
            assert len(flipped) == 1 and flipped[0].bit_count() == 1


def test_what_is_asked_for_is_divided_without_loss():
    assert soak.shares(10, 3) == [3, 3, 4] and soak.shares(1, 3) == [0, 0, 1]


@pytest.mark.slow
def test_a_small_soak_finds_nothing_wrong(tmp_path):
    line = [sys.executable, "tests/soak/soak.py", "--commands=train", "--kills=1", "--damaged=9"]
    line += ["--files=finished-run,newest-checkpoint,tokens", f"--scratch={tmp_path / 'scratch'}"]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests/support")))
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": path}  # programs as users have them
    ended = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    first, *others, last = ended.stdout.splitlines()
    assert first.startswith("train: killed at ") and first.endswith(": the same bits")
    assert len(others) >= 9 and last.startswith("0 wrong; ")
