"""The grid of a folder of runs: numbers as by pandas and NumPy, the best, and what is missing."""

import csv
import io

import numpy as np
import pandas as pd
import pytest
from fake_records import write
from matplotlib.image import imread
from quickstart_sweep import sweep
from scipy import stats

from experiments.analysis import frame, setting_grid
from experiments.reports import grid
from experiments.reports.document import Document
from experiments.reports.figures import scores, setting_heat, setting_lines
from experiments.reports.tables import config_tables

RATE = "optimizer.learning_rate"
SEEDS = range(3)


def score_of(variant, rate, rank, seed):
    noise = seed * (variant == "dora") / 1000  # so that gains are not all the same
    return 0.5 + 0.05 * (variant == "dora") + 20 * rate + rank / 400 + seed**2 / 100 + noise


@pytest.fixture
def folder(tmp_path):
    """Two methods x two rates x two ranks x three seeds; one run diverged, and one is missing."""
    for variant in ("lora", "dora"):
        for rate in (0.001, 0.004):
            for rank in (4, 8):
                for seed in SEEDS:
                    place = (variant, rate, rank, seed)
                    if place == ("lora", 0.001, 8, 2):
                        continue
                    diverged = place == ("dora", 0.004, 8, 1)
                    write(
                        tmp_path / "-".join(map(str, place)),
                        "quickstart",
                        f"size=smoke,variant={variant}",
                        {"accuracy": score_of(*place)},
                        changes={RATE: rate, "variant.rank": rank, "seed": seed},
                        status="diverged" if diverged else "completed",
                    )
    return tmp_path


def grid_of(folder):
    (contest,), _ = config_tables.contests_of(folder, "smoke")
    return setting_grid.of_contest(contest)


def test_a_grid_has_the_numbers_that_pandas_computes(folder):
    found = pd.DataFrame(grid.records(grid_of(folder)))
    runs = frame.settings(folder)
    groups = runs.groupby(["method", "learning rate", "rank"])["score"]
    expected = groups.agg(["mean", "std", "count"])
    assert len(found) == 8 and set(runs["seed"]) == {0, 1, 2}
    for _, row in found.iterrows():
        mean, sd, n = expected.loc[row["label"], row["learning_rate"], row["variant.rank"]]
        half = stats.t.ppf(0.975, n - 1) * sd / np.sqrt(n)
        assert [row["mean"], row["sd"], row["n"]] == pytest.approx([mean, sd, n])
        ends = [mean - half, mean + half] if n > 2 else [np.nan, np.nan]
        assert [row["low"], row["high"]] == pytest.approx(ends, nan_ok=True)


def test_the_best_is_marked_and_diverged_and_missing_runs_are_named(folder):
    found = {tuple(row.values.values()): row for row in grid_of(folder).rows}
    assert len(found) == 4  # keys are rate and rank alone, as the methods' names are no column
    rows = {(row.method.key, *row.values.values()): row for row in grid_of(folder).rows}
    assert rows["dora", 0.004, 4].best == "all"  # rank 8 has more, but diverged with a seed
    assert rows["lora", 0.004, 8].best == "LoRA"
    assert sum(bool(row.best) for row in rows.values()) == 2
    said = {key: grid.lost_text(row) for key, row in rows.items() if row.lost}
    assert said == {
        ("lora", 0.001, 8): "seed 2 missing",
        ("dora", 0.004, 8): "seed 1 diverged",
    }


def test_settings_with_equal_means_are_all_the_best(tmp_path):
    for rank, score in ((2, 0.5), (4, 0.75), (8, 0.75), (16, 0.75)):
        write(
            tmp_path / str(rank),
            "quickstart",
            "size=smoke,variant=lora",
            {"accuracy": score},
            changes={"variant.rank": rank, "seed": 0},
            status="diverged" if rank == 16 else "completed",
        )
    made = grid_of(tmp_path)
    assert [row.best for row in made.rows] == ["", "all", "all", ""]
    assert grid.sentence(made).endswith(
        "rank 4 (accuracy 75.00, 1 seed), and 1 other with the same mean."
    )


def test_a_report_begins_with_the_answer_and_the_grid(folder):
    made, _ = config_tables.contests_of(folder, "smoke")
    document = Document(made, resamples=100)
    text = document.render("markdown")
    verdict, best, title = text.split("\n\n")[1:4]
    assert verdict.startswith("DoRA +")
    assert verdict.split(" (points over LoRA on rotten tomatoes, 3 seeds).")[0].endswith(": better")
    assert best.startswith(
        "Best of 8 settings on rotten tomatoes: DoRA, learning rate 0.004, rank 4"
    )
    assert "all settings" in title
    assert best == grid.render("markdown", [grid_of(folder)]).split("\n\n")[0]
    assert "| method | learning rate | rank | mean ± sd | n | 95% interval | best |" in text
    page = document.render("html")
    assert page.index("<h2>All settings</h2>") < page.index("<h2>Difference from LoRA</h2>")
    assert "Heat map of settings" in page and "Scores by setting" in page
    assert "Scores by learning rate" not in page
    lines = list(csv.DictReader(io.StringIO(document.render("csv"))))
    settings = [line for line in lines if line["line"] == "setting"]
    assert lines[:8] == settings
    assert [line["variant.rank"] for line in settings] == ["4", "8"] * 4
    assert [line["best"] for line in settings if line["best"]] == ["LoRA", "all"]


def test_two_seeds_have_no_interval_and_the_report_says_so(tmp_path):
    for rank in (4, 8):
        for seed in range(2):
            changes = {"variant.rank": rank, "seed": seed}
            values = {"accuracy": 0.5 + 0.3 * seed + rank / 100}
            write(tmp_path / f"{rank}_{seed}", "quickstart", "size=smoke", values, changes=changes)
    text = grid.render("markdown", [grid_of(tmp_path)])
    assert "interval |" not in text and grid.NO_INTERVAL in text
    assert "| LoRA | 8 | 73.00 ± 21.21 | 2 | best |" in text


def test_every_setting_is_drawn_with_named_axes(folder, tmp_path):
    own = grid_of(folder)
    figure = setting_lines.draw(own, "Accuracy (%)")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["LoRA", "DoRA"]
    assert figure.get_supxlabel() == "learning rate" and "Accuracy" in figure.get_supylabel()
    assert figure.legends[0].get_title().get_text() == "rank"
    drawn = {
        (axes.get_title(), each.get_label(), x): y
        for axes in panels
        for each in axes.containers
        for x, y in zip(*each.lines[0].get_data(), strict=True)
    }
    means = {
        (row.method.label, str(row.values["variant.rank"]), row.values[RATE]): row.mean
        for row in own.rows
    }
    assert drawn == pytest.approx(means)
    lines = [each.lines[0] for each in panels[1].containers]
    places = [each.get_transform().transform(each.get_xydata())[:, 0] for each in lines]
    assert np.all(places[1] - places[0] > 4)  # side by side, so that no bar hides another
    for kind in ("settings", "heatmap", "parameters", "learning_rate"):
        out = tmp_path / "pictures" / f"{kind}.png"
        assert len(scores.draw(folder, kind, out, size="smoke")) == 23 and out.exists()


def test_a_heat_map_has_a_cell_for_each_setting_and_frames_the_best(folder):
    own = grid_of(folder)
    figure = setting_heat.draw(own, "Accuracy (%)")
    panels = figure.axes[:-1]
    assert [axes.get_title() for axes in panels] == ["LoRA", "DoRA"]
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("learning rate", "rank")
    assert figure.axes[-1].get_ylabel() == "Accuracy (%), mean over seeds"
    for axes in panels:
        assert [each.get_text() for each in axes.get_xticklabels()] == ["0.001", "0.004"]
        assert [each.get_text() for each in axes.get_yticklabels()] == ["4", "8"]
        texts = {each.get_position(): each.get_text().splitlines() for each in axes.texts}
        rows = [row for row in own.rows if row.method.label == axes.get_title()]
        for row, place in zip(rows, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
            said = [f"{len(runs)} {status}" for status, runs in row.lost.items()]
            assert texts[place] == [f"{row.mean:.2f}", *said]
    framed = {axes.get_title(): [p.get_xy() for p in axes.patches if not p.fill] for axes in panels}
    assert framed == {"LoRA": [(0.53, 0.54)], "DoRA": [(0.53, -0.46)]}


def test_each_task_is_drawn_and_what_is_no_heat_map_is_said(tmp_path):
    for task, ranks in (("cola", (2, 4)), ("rte", (2, 4)), ("sst2", (2,))):
        for rank in ranks:
            for rate in (0.001, 0.002):
                metric = {"cola": "matthews"}.get(task, "accuracy")
                changes = {RATE: rate, "variant.rank": rank}
                place = tmp_path / task / f"{rank}_{rate}"
                write(place, "glue", f"task={task}", {metric: 0.5 + rank * rate}, changes=changes)
    notes = []
    out = tmp_path / "heat.png"
    assert len(scores.draw(tmp_path, "heatmap", out, say=notes.append)) == 8
    assert notes[1:] == [
        "not drawn: MiniLM (all-MiniLM-L6-v2), SST-2 (glue): only learning rate varies, and a heat "
        "map needs two settings"
    ]
    both = imread(out).shape[0]
    scores.draw(tmp_path / "rte", "heatmap", out)
    assert both == 2 * imread(out).shape[0]
    with pytest.raises(ValueError, match=r"--kind=heatmap: .*only learning rate varies"):
        scores.draw(tmp_path / "sst2", "heatmap", out)


def test_smoke_runs_of_another_model_are_named_by_it(tmp_path):
    for model, total in (("minilm", 22_600_000), ("tiny-minilm", 60_000)):
        changes = {"model.name": model}
        arg, scored = "task=cola,size=smoke,source=tfds", {"matthews": 0.5}
        write(tmp_path / model, "glue", arg, scored, changes=changes, parameters_total=total)
    made, _ = config_tables.contests_of(tmp_path, "smoke")
    assert [each.model_title for each in made] == [
        "MiniLM (all-MiniLM-L6-v2)",
        "minilm replaced by tiny-minilm",
    ]


def test_settings_drawn_at_random_have_a_panel_each(tmp_path):
    for number, (rate, rank) in enumerate([(0.001, 4), (0.002, 8), (0.003, 16), (0.005, 2)]):
        changes = {RATE: rate, "variant.rank": rank}
        values = {"accuracy": 0.5 + number / 10}
        write(tmp_path / str(number), "quickstart", "size=smoke", values, changes=changes)
    figure = setting_lines.draw(grid_of(tmp_path), "Accuracy (%)")
    labels = [axes.get_xlabel() for axes in figure.axes if axes.get_visible()]
    assert labels == ["learning rate", "rank"]
    assert "at random" in setting_heat.unfit(grid_of(tmp_path))


@pytest.mark.filterwarnings("ignore:the load_module")
def test_trials_of_a_sweep_that_wait_are_named_and_its_settings_need_no_flag(tmp_path):
    kept, trials = sweep(tmp_path, "config.train.batch_size=8,16", "config.seed=0:2")
    for trial in trials[:3]:
        changes = {
            "train.batch_size": trial.config.train.batch_size,
            "seed": trial.config.seed,
        }
        folder = kept.run(trial.name)
        write(folder, "quickstart", "size=smoke", {"accuracy": 0.5}, changes=changes)
    (kept.path / "outcomes").mkdir()
    rows = {row.values["train.batch_size"]: row for row in grid_of(kept.path).rows}
    assert {size: grid.lost_text(row) for size, row in rows.items()} == {
        8: "",
        16: "seed 1 waiting",
    }
