"""A cell of a table holds our statistic, its number of runs and the published one."""

import shutil
import statistics

import numpy as np
from fake_records import GLUE, write
from hypothesis import given, settings, strategies as st
from rendered_tables import markdown, notes

from experiments.analysis import collect_runs, published
from experiments.analysis.collect_runs import Summary
from experiments.reports.tables import cells


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
    assert row["parameters"] == "294,912 / 0.3M"
    assert "did not start from" not in notes("lora_table2", results)


PAPER_ROW = ("LoRA", "Table 2", "roberta_base", "lora")


def test_a_spread_of_losses_has_digits_of_its_own():
    """Points have as many decimals as their table."""
    loss, points = Summary(1.20117, 0.00221, 3), Summary(87.43, 0.31, 3)
    assert cells.ours_text(cells.Cell(loss), "token_loss", 1) == "1.2012 ± 0.0022 (3)"
    assert cells.ours_text(cells.Cell(points), "accuracy", 1) == "87.4 ± 0.3 (3)"
    assert cells.ours_text(cells.Cell(points), "", 1) == "+87.4 ± 0.3 (3)"  # a difference


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
    assert row["parameters"] == "1,327,104 / 1.33M"


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
    second = {2: (0.75, 0.80), 1: (0.80, 0.90)}  # target and source after the target
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
    gains, lost = [5.0, 30.0], [-10.0, 0.0]
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
    assert list(row) == ["parameters", "RTE 100", "RTE 1000"]
    assert row["RTE 100"].startswith("15.0 ± ") and row["RTE 1000"].startswith("60.0 ± ")


@settings(max_examples=50)
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


def test_a_failed_run_of_no_metric_takes_no_column_from_the_others(tmp_path):
    how = {"status": "failed", "note": "killed", "metric": ""}
    write(tmp_path / "a", "glue", "", {}, **how)
    write(tmp_path / "b", "glue", "seed=1", {"matthews": 0.5}, parameters=1)
    (made,) = markdown("glue", tmp_path).values()
    assert made["LoRA"]["CoLA"] == "50.0 (1, 1 failed)"
