"""Every format of a table holds the same cells, and the command writes them."""

import csv
import functools
import html.parser
import io
import json
import re

import commands
import pytest

from experiments.analysis import published
from experiments.analysis.collect_runs import Summary
from experiments.reports.tables import cells, config_tables
from experiments.reports.tables.cells import Block, Cell, Column, Row
from lora_jax.records import seal
from lora_jax.table import LATEX

NASTY = "a|b & <i>50%</i> _x_ {y} #1 $2 ~ ^ \\ *z* `q` [r=8]"
BLOCK = Block(
    NASTY,
    (Column(NASTY, "rte", "accuracy"), Column("loss", "rte", "eval_loss")),
    (
        Row("a", NASTY, (1000, 2_000_000), None, (Cell(Summary(61.04, 1.26, 3)), Cell())),
        Row(
            "b", "plain", (0,), None, (Cell(None, None, {"failed": 2}), Cell(Summary(0.5, None, 1)))
        ),
    ),
)
GRID = [
    ["method", "parameters", NASTY, "loss"],
    [NASTY, "1,000 to 2,000,000", "61.0 ± 1.3 (3)", "not run"],
    ["plain", "0", "2 failed", "0.5 (1)"],
]


class Reader(html.parser.HTMLParser):
    """The cells of the tables of a page; tags must close in order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.rows, self.open = [], []

    def handle_starttag(self, tag, attrs):
        if tag == "meta":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_every_format_holds_the_same_cells():
    made = {form: cells.write(form, [BLOCK], NASTY, [NASTY], 1) for form in cells.FORMATS}

    lines = [line for line in made["markdown"].splitlines() if line.startswith("|")]
    split = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in lines]
    assert [[re.sub(r"\\(.)", r"\1", t) for t in row] for row in split if row[0] != "---"] == GRID

    reader = Reader()
    reader.feed(made["html"])
    reader.close()
    assert reader.rows == GRID and reader.open == []
    assert made["html"].startswith("<!DOCTYPE html>")
    assert not re.search(r"(src|href)=", made["html"])

    body = made["latex"].partition("\\toprule\n")[2].partition("\\bottomrule")[0]
    rows = [line.removesuffix(" \\\\") for line in body.splitlines() if line != "\\midrule"]
    back = {code: sign for sign, code in LATEX.items()}
    pattern = "|".join(map(re.escape, sorted(back, key=len, reverse=True)))
    plain = [
        [re.sub(pattern, lambda m: back[m[0]], text) for text in re.split(r"(?<!\\) & ", row)]
        for row in rows
    ]
    assert plain == GRID
    assert not re.search(r"(?<!\\)[%#_]", body)

    values = list(csv.DictReader(io.StringIO(made["csv"])))
    assert [(v["method"], v["ours"], v["n"], v["failed"], v["state"]) for v in values] == [
        (NASTY, "61.04", "3", "0", "run"),
        (NASTY, "", "0", "0", "not run"),
        ("plain", "", "0", "2", "failed"),
        ("plain", "0.5", "1", "0", "run"),
    ]
    for text in ("1,000 to 2,000,000", "61.0 ± 1.3 (3)", "not run", "2 failed", "0.5 (1)"):
        assert text in made["rich"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_console_cuts_no_number_off(base, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text = config_tables.render_table("lora_table2", base[0], "rich")
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for cell in published.load():
        if cell.line[:2] == ("LoRA", "Table 2"):
            assert f"{cell.value:.1f}" in text


def test_the_command(base, tmp_path):
    run = functools.partial(commands.run, "experiments.table", COLUMNS="200")
    path = base[0] / "sst2" / "0" / "record.json"
    path.write_text(json.dumps(seal.opened(json.loads(path.read_text()))[0]))
    done = run("--table=lora_table2", f"--results={base[0]}", "--format=csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert sum(row["state"] == "run" for row in rows) == 9
    assert done.stderr.startswith("warning: 1 of 40 records have no seal")
    assert len(done.stderr.splitlines()) == 1
    picture, there = tmp_path / "scores.png", f"--results={base[0]}"
    drawn = commands.run("experiments.plot", there, "--table=lora_table2", f"--out={picture}")
    assert (drawn.returncode, drawn.stdout) == (0, f"picture: {picture}\n")
    assert drawn.stderr.startswith("warning: 1 of ") and len(drawn.stderr.splitlines()) == 1
    done = run("--table=lora_table4", f"--results={base[0]}")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith("error: --table=lora_table4: unknown table; nearest: ")
