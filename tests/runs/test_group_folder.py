"""The file of a group's folder: which trials its checkpoints are of, and how they step."""

import json

import pytest

from experiments.runs.group_folder import GroupFolder, found_by_timing


def test_a_changed_file_is_refused_and_one_of_an_earlier_version_is_read(tmp_path):
    home = GroupFolder(tmp_path / ".programs" / "name")
    home.path.mkdir(parents=True)
    home.begin([0, 2])
    home.settle("vmap", {"vmap": 0.5, "each": 1.0})
    assert (home.trials, home.execution) == ([0, 2], "vmap")
    path = home.path / "trials.json"
    text = path.read_text()
    for changed in (text.replace("2", "3", 1), text.replace("vmap", "each", 1), text[:9], "[]"):
        path.write_text(changed)
        with pytest.raises(ValueError, match=rf"^{path} is damaged: .*; delete {home.path} to sta"):
            _ = home.execution
    values = json.loads(text)
    del values["seal"]
    path.write_text(json.dumps(values))
    assert (home.trials, home.execution) == ([0, 2], "vmap")
    path.write_text(text)
    home.remove()
    assert list(found_by_timing(tmp_path)) == [("vmap", {"vmap": 0.5, "each": 1.0})]
