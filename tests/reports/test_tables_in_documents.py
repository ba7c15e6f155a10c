"""Tables between markers in documents are made anew, and the committed ones are up to date."""

import functools

import pytest
from commands import ROOT
from fake_records import write

from experiments.reports.tables import config_tables
from lora_jax.files import marked_documents

README = """# Title

<!-- table: glue -->
| old |
<!-- /table -->

Between.

<!-- table: few_shot -->
<!-- /table -->
"""


def test_tables_between_markers_are_made_anew_and_the_rest_stays(tmp_path):
    def rewrite(path):
        make = functools.partial(config_tables.render_table, results=runs, form="markdown")
        return marked_documents.rewrite(
            [path], lambda text: marked_documents.fill_blocks(text, "table", make)
        )

    runs = tmp_path / "runs"
    write(tmp_path / "runs" / "0", "glue", "", {"matthews": 0.4}, parameters=221_184)
    path = tmp_path / "README.md"
    path.write_text(README)
    assert rewrite(path) == [path]
    text = path.read_text()
    assert "| LoRA | 221,184 | 40.0 (1) |" in text and "| old |" not in text
    assert text.startswith("# Title\n") and "\nBetween.\n" in text
    assert r"No run of few\_shot is here. The folder has 1 run of glue: " in text
    assert str(runs) not in text
    assert rewrite(path) == []
    write(tmp_path / "runs" / "1", "glue", "seed=1", {"matthews": 0.5}, parameters=221_184)
    assert rewrite(path) == [path]
    assert "45.0 ± 63.5 (2)" in path.read_text()


@pytest.mark.parametrize(
    "text", ["<!-- table: glue -->\n", "<!-- /table -->", README + README[9:40]]
)
def test_a_marker_without_its_other_half_is_an_error(text):
    with pytest.raises(ValueError, match="markers do not pair"):
        marked_documents.fill_blocks(text, "table", lambda name: "")


def test_the_tables_in_documents_are_those_of_the_committed_records():
    results = ROOT / config_tables.RESULTS
    make = functools.partial(config_tables.render_table, results=results, form="markdown")
    texts = [path.read_text(encoding="utf-8") for path in marked_documents.files()]
    assert [
        text for text in texts if marked_documents.fill_blocks(text, "table", make) != text
    ] == []
