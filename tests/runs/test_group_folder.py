"""The file of a group's folder: which trials its checkpoints are of, and how they step."""

import json
from typing import Any

import pytest

from experiments.runs.group import Together
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


class Trial:
    """What the checkpoints of trials are told apart by."""

    def __init__(self, seed, data="data", lengths=(8,), weights="weights", reading="reading"):
        self.texts, self.boundaries = self, lengths
        self.task, self.digest = self, lambda: data
        self.weights_digest, self.reading_digest = weights, reading
        self.config, self.plain = self, {"seed": seed}
        self.train, self.select = self, "last"


def test_common_checkpoints_belong_to_all_that_any_of_the_trials_depends_on(tmp_path):
    def identity(*trials):
        given: Any = trials
        group = Together(given, common=given[0], frozen=(), trainables=(), traced=None)
        with group.saved(tmp_path) as saved:
            return saved.identity

    same = identity(Trial(0), Trial(1), Trial(2))
    assert identity(Trial(0), Trial(1), Trial(2)) == same
    others: list[dict[str, Any]] = [{"data": "other"}, {"lengths": (8, 16)}]
    for last in (Trial(3), *(Trial(2, **other) for other in others)):
        assert identity(Trial(0), Trial(1), last) != same
    for other in [*others, {"weights": "other"}, {"reading": "other"}]:
        assert identity(*(Trial(seed, **other) for seed in range(3))) != same
