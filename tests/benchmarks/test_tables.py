"""Tables are made from the stored results; those of documents are of the committed ones."""

import dataclasses
import json

import pytest

from experiments import marked_documents
from experiments.benchmarks import tables
from experiments.benchmarks.cases import Case, Contender, Goal
from experiments.benchmarks.plan import Plan
from experiments.benchmarks.result_files import require_kept, write
from experiments.benchmarks.results import Curve, Found, Measured

MEASURED = Measured(
    "a group",
    {"ours": dataclasses.asdict(Contender("ours", Case()))},
    {"ours": [0.25, 0.5, 0.75]},
    {"ours": {"flops": 2.5e9, "temporary_bytes": 3 * 2**20, "mfu": 0.25}},
    [
        Found.of("peft/ours", Goal(1.0, 1.5), [1.25, 1.5, 2.0, 2.5, 9.0]),
        Found.of("ours/hand", Goal(1.02, 1.0), [1.5]),
        Found.of("DoRA/LoRA", Goal(1.15, 1.05), [1.1502]),
        Found.of("NF4/LoRA", None, [1.25]),
    ],
    [Curve("tokens", "seconds", [1, 10], [2, 20], {"flops": [1, 100]})],
)
SUMMARY = """\
| group | what | ratio | quartiles | must be | may reach |
| --- | --- | --- | --- | --- | --- |
| a group | peft/ours | 2.00 | 1.50 to 2.50 | ≥ 1 | 1.5 |
| a group | ours/hand | 1.50 |  | ≤ 1.02, missed | 1 |
| a group | DoRA/LoRA | 1.1502 |  | ≤ 1.15, missed | 1.05 |
| a group | NF4/LoRA | 1.25 |  |  |  |

| of | over | from | to | exponent | in theory |
| --- | --- | --- | --- | --- | --- |
| seconds | tokens | 1 | 10 | 1.00 | 2.00 |"""


def test_what_is_written_is_what_was_measured(tmp_path):
    write(tmp_path, "train", Plan(turns=3), [MEASURED])
    content = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    (group,) = content["groups"]
    assert Measured.from_json(group) == MEASURED
    assert content["machine"]["cores"] >= 1 and content["turns"] == 3
    text = (tmp_path / "train.md").read_text(encoding="utf-8")
    assert SUMMARY in text
    assert "| group | contender | least ms | median ms | GFLOP | temporary MiB | mfu |" in text
    assert "| a group | ours | 250.0 | 500.0 | 2.50 | 3.0 | 0.25 |" in text
    assert (tmp_path / "train.png").read_bytes().startswith(b"\x89PNG")


def test_a_suite_may_be_timed_in_pieces(tmp_path):
    def names():
        content = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
        return [group["name"] for group in content["groups"]]

    other = dataclasses.replace(MEASURED, name="another")
    write(tmp_path, "train", Plan(turns=3, cases=("a group",)), [MEASURED])
    write(tmp_path, "train", Plan(turns=3, cases=("another",)), [other])
    assert names() == ["a group", "another"]
    write(tmp_path, "train", Plan(turns=3), [MEASURED])  # again
    assert names() == ["another", "a group"]
    write(tmp_path, "train", Plan(turns=4), [MEASURED])  # timed otherwise
    assert names() == ["a group"]


def test_results_that_would_be_replaced_are_an_error(tmp_path):
    write(tmp_path, "train", Plan(turns=3, against=("hand", "peft")), [MEASURED])
    require_kept(tmp_path, "train", Plan(turns=3, against=("hand", "peft"), cases=("another",)))
    require_kept(tmp_path, "memory", Plan(turns=4))
    with pytest.raises(ValueError, match=r"train\.json was timed with another turns: name another"):
        require_kept(tmp_path, "train", Plan(turns=4, against=("hand", "peft")))
    with pytest.raises(ValueError, match=r"train\.json is against peft, too: name another --out"):
        require_kept(tmp_path, "train", Plan(turns=3, against=("hand",)))


def test_a_document_gets_the_tables_of_its_markers(tmp_path):
    write(tmp_path, "train", Plan(), [MEASURED])
    before = "# A\n<!-- bench: train -->\nold\n<!-- /bench -->\nB\n"
    after = f"# A\n<!-- bench: train -->\n{SUMMARY}\n<!-- /bench -->\nB\n"
    assert tables.fill(before, tmp_path) == after == tables.fill(after, tmp_path)
    assert tables.fill("no marker", tmp_path) == "no marker"
    with pytest.raises(FileNotFoundError, match=r"memory\.json"):
        tables.fill("<!-- bench: memory -->\n<!-- /bench -->\n", tmp_path)


@pytest.mark.parametrize("path", sorted(tables.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_documents_have_the_committed_results(path):
    texts = [each.read_text(encoding="utf-8") for each in marked_documents.files()]
    marker = "methods" if path.stem == "methods" else f"bench: {path.stem}"
    (shows,) = [text for text in texts if f"<!-- {marker} -->" in text]
    assert tables.fill(shows) == shows
    content = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == tables.document(content)
