"""What the soak calls silent: readers that take damage well, and one that does not."""

import json
import random
import warnings
import zlib

import pytest

from experiments.soaking.damage import Subject, counts, difference, soak, spoil, wrong


def checked(folder):
    text = (folder / "value").read_text(encoding="utf-8")
    value, _, check = text.partition("\n")
    if f"{zlib.crc32(value.encode())}" != check:
        raise ValueError("value differs from its check")
    return json.loads(value)


def healed(folder):
    try:
        return checked(folder)
    except ValueError:
        warnings.warn("made again", stacklevel=1)
        return [1, 2, 3]


def careless(folder):
    return (folder / "value").read_bytes().hex()


def lines(folder):
    try:
        return checked(folder)
    except ValueError as error:
        raise ValueError(f"{error}\nand more") from error


def outcomes(tmp_path, read):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "value").write_text(f"[1, 2, 3]\n{zlib.crc32(b'[1, 2, 3]')}")
    subject = Subject("value", folder, lambda copy: [copy / "value"], read, share=1)
    found = soak(subject, 30, 0, tmp_path / "scratch")
    assert (folder / "value").read_text().startswith("[1, 2, 3]\n")  # only copies are damaged
    (row,) = counts(found)
    assert row["tried"] == 30 and 0 < row["cut"] < 30
    return row, wrong(found)


@pytest.mark.parametrize(
    ("read", "outcome", "bad"),
    [
        (checked, "found", 0),
        (healed, "healed", 0),
        (careless, "silent", 30),
        (lines, "unclear", 30),
    ],
)
def test_each_way_to_take_damage_has_its_name(tmp_path, read, outcome, bad):
    row, said = outcomes(tmp_path, read)
    assert row[outcome] == 30 and len(said) == bad


def test_damage_is_one_bit_or_a_shorter_file(tmp_path):
    path, content = tmp_path / "file", bytes(range(100))
    for seed in range(20):
        path.write_bytes(content)
        how = spoil(path, random.Random(seed))
        found = path.read_bytes()
        if how.startswith("cut"):
            assert len(found) < 100 and content.startswith(found)
        else:
            flipped = [a ^ b for a, b in zip(content, found, strict=True) if a != b]
            assert len(flipped) == 1 and flipped[0].bit_count() == 1


def test_the_first_difference_has_its_place():
    assert difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ".a[1].b: 2 became 3"
