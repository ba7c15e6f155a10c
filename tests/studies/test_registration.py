"""A study is registered once, as a whole, and cannot be changed afterwards."""

import dataclasses
import json

import pytest

from experiments.analysis.recorded_runs import REGISTRATION
from experiments.studies import registration
from experiments.studies.protocol import Protocol
from experiments.studies.registration import Planned

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
