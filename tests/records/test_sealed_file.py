"""Files that a command goes on from come back as they were written, or not at all."""

import json

import pytest

from lora_jax.records import seal

VALUES = {"rungs": [{"step": 2, "scores": [[0, 0.5], [1, None]]}], "name": "a"}


def test_values_come_back(tmp_path):
    seal.write(tmp_path / "a.json", VALUES)
    assert seal.read(tmp_path / "a.json") == VALUES


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "b"}, "was changed after it was written"),
        ({"rungs": [{"step": 2, "scores": [[1, 0.5], [0, None]]}]}, "was changed"),
        ({"seal": None}, "was changed after it was written"),
        ({}, "has no seal"),
    ],
)
def test_a_change_is_noticed(tmp_path, change, said):
    path = tmp_path / "a.json"
    seal.write(path, VALUES)
    content = json.loads(path.read_text()) | change
    if not change:
        del content["seal"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"a\.json.*{said}"):
        seal.read(path)
