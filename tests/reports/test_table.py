"""One table: texts show numbers as their formats say, and CSV and data frames have their values."""

import csv
import io

import pytest
from rich.console import Console

from lora_jax.table import Number, Table

TABLE = Table(
    ("method", "score", "runs"),
    [["a|b [r=8]", Number(0.98765, ".1%"), 3], ["c", None, 12]],
    "One",
)


def test_plain_text_is_as_wide_as_its_widest_entries():
    assert TABLE.to_text().splitlines() == [
        "method     score  runs",
        "---------  -----  ----",
        "a|b [r=8]  98.8%  3",
        "c                 12",
    ]


def test_markdown_escapes_texts_or_keeps_them():
    assert TABLE.to_markdown().splitlines() == [
        "**One**",
        "",
        "| method | score | runs |",
        "| --- | --- | --- |",
        "| a\\|b [r=8] | 98.8% | 3 |",
        "| c |  | 12 |",
    ]
    link = Table(("paper",), [["[a_b](x)\n|"]])
    assert link.to_markdown(escape=False).splitlines()[-1] == "| [a_b](x) \\| |"
    assert link.to_markdown().splitlines()[-2:] == ["| [a\\_b](x)", "\\| |"]


def test_csv_and_frames_have_values():
    rows = list(csv.reader(io.StringIO(TABLE.to_csv())))
    assert rows == [["method", "score", "runs"], ["a|b [r=8]", "0.98765", "3"], ["c", "", "12"]]
    pytest.importorskip("pandas")
    frame = TABLE.to_frame()
    assert list(frame.columns) == list(TABLE.heads) and list(frame["runs"]) == [3, 12]
    assert frame["score"][0] == 0.98765 and frame["score"].isna().tolist() == [False, True]


def test_records_fill_the_columns_that_they_have():
    made = Table.of_records(("a", "b"), [{"b": 1}, {"a": "x"}])
    assert made.rows == [[None, 1], ["x", None]] and made.to_csv() == "a,b\n,1\nx,\n"
    with pytest.raises(ValueError, match="no columns c"):
        Table.of_records(("a",), [{"a": 1, "c": 2}])


def test_the_console_shows_brackets_as_they_are():
    console = Console(file=io.StringIO(), width=60)
    console.print(TABLE.to_rich())
    assert "a|b [r=8]" in console.file.getvalue()


def test_a_column_of_numbers_may_lack_some():
    assert TABLE.numeric() == [False, True, True]
    assert Table(("a", "b"), [["x", "1"], ["y", "better"]]).numeric() == [False, False]
