"""Malformed input is taken, or refused in one clear line; nothing of it is executed."""

import subprocess
import sys

import pytest

from experiments.soaking import malformed


@pytest.mark.filterwarnings("ignore:the load_module")
def test_malformed_input_is_refused_in_one_clear_line():
    found = malformed.soak(180, 0)
    assert malformed.wrong(found) == []
    rows = malformed.counts(found)
    assert all(row["tried"] == 15 for row in rows) and len(rows) == 12
    # Spoiled files are refused: taking all of them would be no test.
    assert all(row["refused"] > 5 for row in rows)


def executes():
    subprocess.run([sys.executable, "-c", ""], check=True)


def outside():
    int("x")  # a ValueError of Python's own


def own():
    raise ValueError("two\nlines")


def test_what_is_executed_or_unclear_is_seen():
    with malformed._watched() as executed:
        tried = [malformed._try("k", "w", read, executed) for read in (executes, outside, own)]
    assert [each.outcome for each in tried] == ["executed", "unclear", "unclear"]
    assert len(malformed.wrong(tried)) == 3
