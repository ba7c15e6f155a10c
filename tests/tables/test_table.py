"""Tables: what stands in which cell, what is left out and named, and the same in every format."""

import csv
import functools
import html.parser
import io
import json
import re
import shutil
import statistics
from pathlib import Path

import commands
import numpy as np
import pytest
from commands import ROOT
from fake_records import write
from hypothesis import given, settings, strategies as st

from experiments import marked_documents
from experiments.analysis import collect_runs, published
from experiments.analysis.collect_runs import Summary
from experiments.analysis.labels import natural
from experiments.tables import config_tables, formats, text_formats
from experiments.tables.cells import Block, Cell, Column, Row
from lora_jax.files.canonical_json import config_digest
from lora_jax.records import seal

GLUE = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")


def markdown(name: str, results: Path, **choice: str) -> dict[str, dict[str, dict[str, str]]]:
    """A rendered table read back: by block, method and heading."""
    text = config_tables.render_table(name, results, "markdown", **choice).replace("\\", "")
    blocks: dict[str, dict[str, dict[str, str]]] = {}
    for title, body in re.findall(r"\*\*(.*?)\*\*\n\n((?:\|.*\n)+)", text):
        heads, _, *rows = [line.strip("| ").split(" | ") for line in body.splitlines()]
        model = re.sub(r".*, ", "", title)
        blocks[model] = {row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in rows}
    return blocks


def notes(name: str, results: Path) -> str:
    return (
        config_tables.render_table(name, results, "markdown").rpartition("|\n")[2].replace("\\", "")
    )


@pytest.fixture
def base(tmp_path):
    """LoRA's Table 2 on RoBERTa base, five seeds of every task; the scores by task."""
    rng = np.random.default_rng(0)
    scores = {}
    for task in GLUE:
        scores[task] = rng.uniform(0.6, 0.9, 5)
        metric = {"cola": "matthews", "stsb": "pearson"}.get(task, "accuracy")
        for seed, score in enumerate(scores[task]):
            start = ",start_from=runs/mnli" if task in ("mrpc", "rte", "stsb") else ""
            arg = f"model=roberta_base,task={task},seed={seed}{start}"
            folder = tmp_path / "results" / task / str(seed)
            write(folder, "lora_table2", arg, {metric: score, "eval_loss": 0.5}, parameters=294_912)
    return tmp_path / "results", scores


def test_a_cell_has_the_protocol_s_statistic_beside_the_published_one(base):
    results, scores = base
    row = markdown("lora_table2", results)["RoBERTa base (ours / published)"]["LoRA"]
    paper = {cell.task: cell for cell in published.load() if cell.line == PAPER_ROW}
    for heading, task in zip(["MNLI", "SST-2", "MRPC", "CoLA", "QNLI", "QQP"], GLUE, strict=False):
        median = np.sort(scores[task])[2] * 100
        sd = np.sqrt(((scores[task] - scores[task].mean()) ** 2).sum() / 4) * 100
        printed = f"{paper[task].value:.1f} ± {paper[task].sd:.1f}"
        assert row[heading] == f"{median:.1f} ± {sd:.1f} (5) / {printed}"
    average = np.mean([np.median(scores[task]) for task in GLUE]) * 100
    assert row["average"] == f"{average:.1f} / 87.2"
    assert row["parameters without head"] == "294,912 / 0.3M"
    assert "did not start from" not in notes("lora_table2", results)


PAPER_ROW = ("LoRA", "Table 2", "roberta_base", "lora")


def test_nothing_run_is_said_and_bottleneck_adapters_are_published_only(base):
    results, _ = base
    made = markdown("lora_table2", results)
    large = made["RoBERTa large (ours / published)"]
    assert large["LoRA, dagger set-up"]["RTE"] == "not run / 85.2 ± 1.1"
    assert large["LoRA, dagger set-up"]["average"] == "not run / 88.6"
    adapters = {name: row for name, row in large.items() if "adapter" in name}
    assert len(adapters) == 4
    for name, row in adapters.items():
        assert name.endswith("(published only)")
        assert all(text.startswith("– / ") for text in row.values())
    shutil.rmtree(results / "qnli")
    row = markdown("lora_table2", results, model="roberta_base").popitem()[1]["LoRA"]
    assert row["QNLI"] == "not run / 93.3 ± 0.3"
    assert row["average"] == "not run / 87.2"


def test_a_published_number_is_never_beside_another_model_s(base):
    results, _ = base
    for seed in range(2):
        write(
            results / "small" / str(seed),
            "lora_table2",
            f"task=rte,seed={seed}",
            {"accuracy": 0.6 + seed / 50},
            parameters=73_728,
        )
    made = markdown("lora_table2", results)
    small = made.pop("MiniLM (all-MiniLM-L6-v2) (ours)")
    assert small["LoRA"]["RTE"] == "61.0 ± 1.4 (2)"
    assert small["LoRA"]["MNLI"] == "not run"
    assert not any("/" in text for row in small.values() for text in row.values())
    by_title = {"roberta_base": "RoBERTa base", "roberta_large": "RoBERTa large"}
    by_title |= {"deberta_v2_xxl": "DeBERTa-v2 XXL"}
    for cell in published.load():
        if cell.line[:2] == ("LoRA", "Table 2") and cell.task == "rte":
            rows = made[f"{by_title[cell.model]} (ours / published)"]
            name = cell.method if cell.runnable else f"{cell.method} (published only)"
            assert f"/ {cell.value:.1f}" in rows[name]["RTE"]
    assert "minilm, lora, rte: 2 of our runs did not start from" in notes("lora_table2", results)


@pytest.mark.parametrize(("name", "published_rows"), [("lora_table6", 15), ("lora_table18", 11)])
def test_a_decoder_s_table_is_a_block_of_its_own(tmp_path, name, published_rows):
    for seed in range(3):
        arg = f"model=roberta_base,task=mnli,rank=4,seed={seed}"
        write(tmp_path / str(seed), name, arg, {"accuracy": 0.87}, parameters=147_456)
    made = markdown(name, tmp_path)
    (paper,) = (block for title, block in made.items() if title.endswith("(published only)"))
    assert len(made) == 2 and len(paper) == published_rows
    ours = made["RoBERTa base (ours)"]
    run = [list(row.values()) for row in ours.values() if row["MNLI"] != "not run"]
    assert run == [["147,456", "87.0 ± 0.0 (3)"]]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "lora_table6",
            [
                f"LoRA, {weights}, r={rank}"
                for weights in ("Wq", "Wq,Wv", "Wq,Wk,Wv,Wo")
                for rank in (1, 2, 4, 8, 64)
            ],
        ),
        ("lora_table18", [f"LoRA, r={2**power}" for power in range(9)]),
    ],
)
def test_a_grid_stands_there_before_anything_of_it_is_run(tmp_path, name, rows):
    grid = markdown(name, tmp_path)["RoBERTa base (ours)"]
    assert list(grid) == rows
    assert all(list(row.items())[1:] == [("CoLA", "not run")] for row in grid.values())
    arg = "model=roberta_base,task=rte,rank=4"
    write(tmp_path / "one", name, arg, {"accuracy": 0.7}, parameters=147_456)
    grid = markdown(name, tmp_path)["RoBERTa base (ours)"]
    assert list(grid) == rows
    cells = [list(row.items())[1:] for row in grid.values()]
    assert cells.count([("RTE", "not run")]) == len(rows) - 1
    assert cells.count([("RTE", "70.0 (1)")]) == 1


def test_a_table_of_fixed_columns_and_rows_says_what_of_it_is_not_run(tmp_path):
    write(
        tmp_path,
        "studies.against_lora",
        "task=cola,row=lora",
        {"matthews": 0.4},
        parameters=331_776,
    )
    (made,) = markdown("against_lora", tmp_path).values()
    assert len(made) == 16 and list(made)[:3] == ["head alone", "BitFit", "full fine-tuning"]
    ours = made.pop("LoRA")
    assert (ours["CoLA"], ours["SST-2"]) == ("40.0 (1)", "not run")
    assert all(row["CoLA"] == row["SST-2"] == "not run" for row in made.values())


def test_another_model_in_the_place_of_the_config_s_is_a_block_of_its_own(base):
    results, _ = base
    before = markdown("lora_table2", results)
    own = {"changes": {"model.name": "google-bert/bert-base-uncased"}, "parameters": 294_912}
    arg = "model=roberta_base,task=cola,seed=7"
    write(
        results / "bert",
        "lora_table2",
        arg,
        {"matthews": 0.6},
        parameters_total=109_483_778,
        **own,
    )
    made = markdown("lora_table2", results)
    other = made.pop("roberta_base replaced by a model of 109M parameters (ours)")
    assert other["LoRA"]["CoLA"] == "60.0 (1)"
    assert made == before
    said = "of 109M parameters: our runs are of google-bert/bert-base-uncased."
    assert said in notes("lora_table2", results)


def test_settings_that_are_not_the_config_s_are_named(base):
    results, _ = base
    assert "not the config's" not in notes("lora_table2", results)
    shutil.rmtree(results / "cola")
    changes = {"optimizer.learning_rate": 1e-3, "train.epochs": 3, "data.folder": "elsewhere"}
    for seed in range(2):
        arg = f"model=roberta_base,task=cola,seed={seed}"
        folder = results / "cola" / str(seed)
        write(folder, "lora_table2", arg, {"matthews": 0.6}, parameters=1, changes=changes)
    said = "roberta_base, lora, cola: our runs are not the config's: optimizer.learning_rate is "
    said += "0.001 in place of 0.0004; train.epochs is 3 in place of 80."
    assert said in notes("lora_table2", results)


def test_smoke_runs_never_stand_beside_a_published_number(tmp_path):
    arg = "model=roberta_base,task=cola,size=smoke"
    write(tmp_path, "lora_table2", arg, {"matthews": 0.1}, parameters=294_912)
    text = config_tables.render_table("lora_table2", tmp_path, "markdown", size="smoke")
    assert "**LoRA, Table 2: GLUE, smoke runs, RoBERTa base (ours)**" in text
    assert "10.0 (1)" in text and "63.4" not in text and "Published" not in text


def test_what_diverged_is_counted_and_named(base):
    results, scores = base
    shutil.rmtree(results / "rte" / "4")
    arg = "model=roberta_base,task=rte,seed=4,start_from=x"
    how = {"status": "diverged", "note": "the loss is not finite at step 12", "best_step": None}
    write(results / "rte" / "4", "lora_table2", arg, {"accuracy": None}, **how)
    row = markdown("lora_table2", results)["RoBERTa base (ours / published)"]["LoRA"]
    four = [100 * score for score in scores["rte"][:4]]
    ours = f"{statistics.median(four):.1f} ± {statistics.stdev(four):.1f}"
    assert row["RTE"] == f"{ours} (4, 1 diverged) / 86.6 ± 0.7"
    said = "diverged: roberta_base, lora, rte, seed 4: the loss is not finite at step 12"
    assert said in notes("lora_table2", results)
    for seed in range(4):
        shutil.rmtree(results / "rte" / str(seed))
    row = markdown("lora_table2", results)["RoBERTa base (ours / published)"]["LoRA"]
    assert row["RTE"] == "1 diverged / 86.6 ± 0.7"
    assert row["average"] == "not run / 87.2"


def test_copies_are_one_run_and_contradictions_an_error(base):
    results, _ = base
    before = markdown("lora_table2", results)
    shutil.copytree(results / "sst2" / "0", results / "moved" / "0")
    assert markdown("lora_table2", results) == before
    assert "1 run left out: copies" in notes("lora_table2", results)
    arg = "model=roberta_base,task=sst2,seed=0"
    shutil.rmtree(results / "moved")
    write(results / "moved", "lora_table2", arg, {"accuracy": 0.5}, status="failed", note="killed")
    assert markdown("lora_table2", results) == before
    shutil.rmtree(results / "moved")
    write(results / "moved", "lora_table2", arg, {"accuracy": 0.5})
    with pytest.raises(ValueError, match=r"are the same run \(seed 0\) with different results"):
        markdown("lora_table2", results)


def test_a_failed_attempt_with_other_settings_is_left_out(base):
    results, _ = base
    before = markdown("lora_table2", results)
    arg, changes = "model=roberta_base,task=sst2,seed=9", {"optimizer.learning_rate": 9.0}
    how = {"status": "failed", "note": "killed", "changes": changes}
    write(results / "other", "lora_table2", arg, {"accuracy": None}, **how)
    assert markdown("lora_table2", results) == before
    assert "1 run left out: not completed, and with other settings" in notes("lora_table2", results)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"changes": {"variant.rank": 4}}, "variant.rank is 8 in one and 4 in the other"),
        ({"changes": {"variant.dropout": 0.1}}, "variant.dropout is absent in one and 0.1 in the"),
        ({"changes": {"optimizer.learning_rate": 1e-3}}, "optimizer.learning_rate is"),
        ({"changes": {"start_from": "runs/mnli"}}, "start_from is null in one and a run in the"),
        ({"data_digest": "other"}, "were trained on different data"),
        ({"weights_digest": "other"}, "began from different weights"),
    ],
)
def test_runs_of_a_cell_are_of_the_same_thing(base, how, said):
    results, _ = base
    arg = "model=roberta_base,task=sst2,seed=9"
    write(results / "sst2" / "9", "lora_table2", arg, {"accuracy": 0.9}, **how)
    with pytest.raises(ValueError, match=re.escape(said)):
        config_tables.render_table("lora_table2", results, "csv")
    # what tells runs of one cell apart, and what changes no result, may differ
    shutil.rmtree(results / "sst2" / "9")
    free = {"data.folder": "elsewhere", "train.log_every": 7, "train.checkpoint_every": 9}
    free["variant.dropout"] = None  # as older versions recorded what was not set
    write(results / "sst2" / "9", "lora_table2", arg, {"accuracy": 0.9}, changes=free)
    row = markdown("lora_table2", results)["RoBERTa base (ours / published)"]["LoRA"]
    assert "(6)" in row["SST-2"]


def test_smoke_runs_and_tuning_runs_are_left_out_and_counted(tmp_path):
    for seed in range(3):
        write(
            tmp_path / f"run{seed}", "glue", f"seed={seed}", {"matthews": 0.4}, parameters=221_184
        )
    write(tmp_path / "smoke", "glue", "size=smoke", {"matthews": 0.0})
    for number, rate in enumerate((1e-3, 2e-3)):
        changes = {"data.validation": 500, "optimizer.learning_rate": rate}
        write(tmp_path / f"tune{number}", "glue", "", {"matthews": 0.9}, changes=changes)
    made = markdown("glue", tmp_path)
    assert made == {
        "MiniLM (all-MiniLM-L6-v2) (ours)": {
            "LoRA": {"parameters without head": "221,184", "CoLA": "40.0 ± 0.0 (3)"}
        }
    }
    said = notes("glue", tmp_path)
    assert "1 run left out: of another size" in said
    assert "2 runs left out: validated on a part of the training examples" in said
    smoke = markdown("glue", tmp_path, size="smoke").popitem()[1]
    assert smoke["LoRA"]["CoLA"] == "0.0 (1)"


def test_two_metrics_of_a_task_count_once_in_an_average(tmp_path):
    scores = {"accuracy": 0.9, "accuracy_mismatched": 0.8, "f1": 0.7, "pearson_spearman": 0.5}
    scores |= {"matthews": 0.6}
    tasks = ("mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb")
    for task in tasks:
        arg = f"model=deberta_v3_base,method=lora_r8,task={task}"
        write(tmp_path / task, "adalora_table1", arg, scores, parameters=1_327_104)
    (made,) = markdown("adalora_table1", tmp_path).values()
    row = made["LoRA, r=8, all six"]
    assert row["MNLI mm"] == "80.00 (1) / 90.69"
    assert row["QQP F1"] == "70.00 (1) / 89.38"
    single = [90.0] * 4 + [60.0, 50.0]  # SST-2, QNLI, RTE, MRPC, CoLA, STS-B
    assert row["average"] == f"{(sum(single) + 85 + 80) / 8:.2f} / 88.34"
    assert row["parameters without head"] == "1,327,104 / 1.33M"


def test_a_metric_that_was_not_measured_is_not_a_run_missing(tmp_path):
    arg = "method=lora_r8,task=mnli"
    write(tmp_path, "adalora_table1", arg, {"accuracy": 0.7}, parameters=1)
    small = markdown("adalora_table1", tmp_path)["MiniLM (all-MiniLM-L6-v2) (ours)"]
    row = small["LoRA, r=8"]
    assert (row["MNLI"], row["MNLI mm"], row["RTE"]) == ("70.00 (1)", "1 not measured", "not run")


def test_the_quantised_rows_have_no_invented_number(tmp_path):
    made = markdown("qlora_table3", tmp_path)
    large = made["RoBERTa large (ours / published)"]
    assert large["LoRA, BF16"]["average (accuracy)"] == "– / 88.8"
    assert large["LoRA, BF16"]["average"] == "not run / –"  # ours is not known to be that average
    assert large["LoRA, NF4 + DQ"]["average (accuracy)"] == "–"
    assert len([title for title in made if "published only" in title]) == 5  # T5, by size


def test_gain_and_forgetting_are_made_seed_by_seed(tmp_path):
    first = {0: (0.80, 0.60), 1: (0.90, 0.50), 2: (0.7, 0.7)}  # source and target after the source
    second = {0: (0.75, 0.70), 1: (0.80, 0.90)}  # target and source after the target
    for seed, (own, extra) in first.items():
        arg = f"stage=source,seed={seed}"
        scores = {"accuracy": own, "accuracy_extra": extra}
        write(tmp_path / f"s{seed}", "domain_shift", arg, scores, parameters=5)
    for seed, (own, extra) in second.items():
        arg = f"stage=target,seed={seed},start_from=s{seed}"
        scores = {"accuracy": own, "accuracy_extra": extra}
        write(tmp_path / f"t{seed}", "domain_shift", arg, scores, parameters=5)
    (row,) = markdown("domain_shift", tmp_path).popitem()[1].values()
    t = 12.7062047364  # Student's, one degree of freedom, 97.5%
    gains, lost = [15.0, 30.0], [10.0, 0.0]
    for name, values in (("gain", gains), ("forgetting", lost)):
        half = t * statistics.stdev(values) / 2**0.5
        assert row[name] == f"{statistics.fmean(values):+.1f} ± {half:.1f} (2)"


def test_draws_and_seeds_share_a_cell_and_sizes_do_not(tmp_path):
    for draw in range(3):
        for n in (100, 1000):
            arg = f"examples={n},draw={draw},seed={draw % 2}"
            folder = tmp_path / f"{n}_{draw}"
            write(folder, "few_shot", arg, {"accuracy": n / 2000 + draw / 10}, parameters=2)
    (row,) = markdown("few_shot", tmp_path).popitem()[1].values()
    assert list(row) == ["parameters without head", "RTE 100", "RTE 1000"]
    assert row["RTE 100"].startswith("15.0 ± ") and row["RTE 1000"].startswith("60.0 ± ")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_statistics_are_the_textbook_s(scores):
    quantile = {2: 12.7062, 3: 4.30265, 4: 3.18245, 5: 2.77645, 6: 2.57058, 7: 2.44691, 8: 2.36462}
    n = len(scores)
    sd = np.std(scores, ddof=1)
    median = collect_runs.summarise(scores, "median", "sd")
    mean = collect_runs.summarise(scores, "mean", "ci95")
    assert median.n == mean.n == n
    np.testing.assert_allclose([median.centre, median.spread], [np.median(scores), sd], atol=1e-9)
    half = quantile[n] * sd / np.sqrt(n)
    np.testing.assert_allclose([mean.centre, mean.spread], [np.mean(scores), half], 1e-5, 1e-9)


def test_one_run_has_no_spread():
    assert collect_runs.summarise([3.0], "mean", "ci95") == Summary(3.0, None, 1)


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
    ["method", "parameters without head", NASTY, "loss"],
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
    made = {form: formats.write(form, [BLOCK], NASTY, [NASTY], 1) for form in formats.FORMATS}

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
    back = {code: sign for sign, code in text_formats.LATEX.items()}
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


def test_names_are_in_order_of_their_numbers():
    assert natural(["r16", "r2", "qv_r8", "r1", "qv_r64"]) == [
        "qv_r8",
        "qv_r64",
        "r1",
        "r2",
        "r16",
    ]
    rates = ["rate_2e-4_ratio_4", "rate_1e-5_ratio_16", "rate_1e-5_ratio_4"]
    assert natural(rates) == [rates[2], rates[1], rates[0]]


def test_mistakes_are_named(base):
    results, _ = base
    with pytest.raises(ValueError, match="unknown table 'lora_tabel2'; nearest: 'lora_table2'"):
        config_tables.render_table("lora_tabel2", results, "rich")
    with pytest.raises(ValueError, match="with model 'roberta_bse'; nearest: 'roberta_base'"):
        config_tables.render_table("lora_table2", results, "rich", model="roberta_bse")
    with pytest.raises(FileNotFoundError, match=r"--results .*nowhere: no such folder"):
        config_tables.render_table("lora_table2", results / "nowhere", "rich")
    path = results / "sst2" / "0" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": -1, "extra": 1}))
    with pytest.raises(ValueError, match=r"sst2/0/record.json: .*extra is not a field"):
        config_tables.render_table("lora_table2", results, "rich")


def test_notes_are_of_the_model_that_is_shown(base):
    results, _ = base
    write(results / "small", "lora_table2", "task=rte", {"accuracy": 0.5}, parameters=73_728)
    text = config_tables.render_table("lora_table2", results, "csv", model="minilm")
    assert "roberta" not in text
    how = {"status": "diverged", "note": "too fast"}
    arg = "model=roberta_base,task=rte,seed=9,start_from=runs/mnli"
    write(results / "bad", "lora_table2", arg, {}, **how)
    text = config_tables.render_table("lora_table2", results, "markdown", model="minilm")
    assert "did not start from an MNLI adapter" in text and "too fast" not in text


def test_a_failed_run_of_no_metric_takes_no_column_from_the_others(tmp_path):
    how = {"status": "failed", "note": "killed", "metric": ""}
    write(tmp_path / "a", "glue", "", {}, **how)
    write(tmp_path / "b", "glue", "seed=1", {"matthews": 0.5}, parameters=1)
    (made,) = markdown("glue", tmp_path).values()
    assert made["LoRA"]["CoLA"] == "50.0 (1, 1 failed)"


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (lambda config: config["data"].pop("draw"), "data.draw"),
        (lambda config: config["study"].pop("size"), "study.size"),
        (lambda config: config.update(train=None), "train.select"),
        (lambda config: config.pop("start_from"), "start_from"),
        (lambda config: config.update(study="glue"), "study.table"),
    ],
)
def test_a_record_of_another_version_is_named(tmp_path, change, missing):
    write(tmp_path / "a", "glue", "", {"matthews": 0.5}, parameters=1)
    path = tmp_path / "a" / "record.json"
    values = json.loads(path.read_text())
    change(values["config"])
    values["config_digest"] = config_digest(values["config"])
    path.write_text(json.dumps(seal.sealed(seal.opened(values)[0])))
    with pytest.raises(
        ValueError, match=f"a/record.json: its config has no {missing}: another ver"
    ):
        config_tables.render_table("glue", tmp_path, "rich")


def test_every_table_renders_before_anything_is_run(tmp_path):
    for name in config_tables.names():
        assert config_tables.render_table(name, tmp_path, "markdown")
    assert (
        config_tables.render_table("glue", tmp_path, "markdown").strip() == "Nothing has been run."
    )
    assert {"lora_table2", "vera_table2", "glue"} <= set(config_tables.names())
    assert "quickstart" not in config_tables.names()


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
    assert "| LoRA | 221,184 | 40.0 (1) |" in text and "old" not in text
    assert text.startswith("# Title\n") and "\nBetween.\n" in text and "Nothing has been" in text
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
    assert done.stderr.startswith("error: unknown table 'lora_table4'; nearest: ")
