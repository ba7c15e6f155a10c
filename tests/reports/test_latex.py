"""Tables in LaTeX: environments, captions, labels and alignment, and that a document takes them."""

import re
import shutil
import subprocess

import pytest

from lora_jax.table import Table, is_numeric, number_of, render_tables

NASTY = '|a & <i>50%</i> _x_ {y} #1 $2 ~ ^ \\ "z" [r=8] … ± † ‡ –'
TABLES = [
    Table(("method", "score", "95% interval", "word"), [
        ["[first]", "28.0 ± 2.7 (3)", "[21.3, 34.7]", "held-out"],
        [NASTY, "not run", "–", "–"],
        ["* third", "<0.001", "[-1.0, +2.0]", "none"],
    ], "One, 50% of #1"),
    Table(("method", "score"), [["a", "3-0-1"]], "One: 50% of 1!"),
]  # fmt: skip


def test_a_table_has_a_caption_and_a_label_of_its_own():
    text = render_tables("latex", TABLES, [NASTY], ["First 100%."])
    opened = re.findall(r"\\begin\{(\w+)\}", text)
    closed = re.findall(r"\\end\{(\w+)\}", text)
    assert opened == ["table", "tabular"] * 2 and closed == ["tabular", "table"] * 2
    assert re.findall(r"\\caption\{(.*)\}", text) == [r"One, 50\% of \#1", r"One: 50\% of 1!"]
    assert re.findall(r"\\label\{(.*)\}", text) == ["tab:one-50-of-1", "tab:one-50-of-1-2"]
    assert re.findall(r"\\begin\{tabular\}\{(\w+)\}", text) == ["lrrl", "lr"]
    assert text.index(r"First 100\%.") < text.index(r"\begin{table}")
    assert "[$-$1.0, +2.0]" in text and "3-0-1" in text
    plain = re.sub(r"\\[{}]", "", text)  # escaped braces of a text need not pair
    assert plain.count("{") == plain.count("}")


def test_a_long_table_is_divided_into_parts_that_fit_a_page():
    title = "MiniLM, RTE (no study): all settings, accuracy on the held-out training examples"
    rows = [[f"method {n}", -0.0] for n in range(100)]
    text = render_tables("latex", [Table(("method", "score"), rows, title)])
    captions = re.findall(r"\\caption\{(.*)\}", text)
    assert captions == [f"{title} ({n} of 3)" for n in (1, 2, 3)]
    label = "tab:minilm-rte-no-study-all-settings"
    assert re.findall(r"\\label\{(.*)\}", text) == [label, f"{label}-2", f"{label}-3"]
    assert re.findall(r"method (\d+)", text) == [str(n) for n in range(100)]
    assert text.count("score") == 3


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("28.01 ± 2.70", 28.01),
        ("[-1.49, 4.24]", -1.49),
        ("+4.35 [-7.08, +15.78]", 4.35),
        ("<0.001", 0.001),
        ("22,566,146", 22_566_146),
        ("329,472 to 334,080", 329_472),
        ("3e-4 (highest)", 3e-4),
        ("3 (3 runs)", 3),
        ("3-0-1", 3),
        ("8bit", None),
        ("LoRA 8", None),
        ("–", None),
    ],
)
def test_the_number_of_a_cell_is_the_one_that_it_begins_with(text, found):
    assert number_of(text) == found


def test_a_column_is_of_numbers_if_all_that_is_told_is_one():
    assert is_numeric(["1.0", "–", "not run"])
    assert not is_numeric(["1.0", "held-out"]) and not is_numeric(["–", "not run"])


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX is installed")
def test_a_document_takes_the_tables(tmp_path):
    (tmp_path / "tables.tex").write_text(
        render_tables("latex", TABLES, [NASTY], [NASTY]), encoding="utf-8"
    )
    document = r"""\documentclass{article}
\usepackage{booktabs, graphicx}
\begin{document}
See Table~\ref{tab:one-50-of-1} and Table~\ref{tab:one-50-of-1-2}.
\input{tables}
\end{document}
"""
    (tmp_path / "main.tex").write_text(document)
    line = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    for _ in range(2):
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
    assert "undefined" not in done.stdout and (tmp_path / "main.pdf").stat().st_size > 0
