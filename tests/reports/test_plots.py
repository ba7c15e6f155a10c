"""Pictures: what is drawn where."""

import itertools

import numpy as np
import pytest
from fake_records import write
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer

from experiments.analysis import collect_runs, recorded_runs
from experiments.reports.figures.scores import (
    FIGURES,
    draw,
    examples,
    learning_rate,
    parameters,
    training,
)
from experiments.runs.rank_map import rank_grid, rank_map

STACKED = {
    "layers/attention/query/kernel": np.array([3, 0, 2]),
    "layers/qkv/kernel": np.array([[1, 2], [3, 4], [5, 6]]),
}
APART = {
    "encoder/0/up": np.array(4),
    "encoder/0/down": np.array(1),
    "encoder/2/up": np.array(7),
    "pooler": np.array(5),
}
NAN = np.nan


@pytest.mark.parametrize(
    "ranks, columns, grid",
    [
        (
            STACKED,
            ["attention/query/kernel", "qkv/kernel/0", "qkv/kernel/1"],
            [[3, 1, 2], [0, 3, 4], [2, 5, 6]],
        ),
        (
            APART,
            ["encoder/up", "encoder/down", "pooler"],
            [[4, 1, 5], [NAN, NAN, NAN], [7, NAN, NAN]],
        ),
        (
            {"a/x/kernel": np.array([1]), "a/y/kernel": np.array([2])},
            ["x", "y"],
            [[1, 2]],
        ),
        ({"only/kernel": np.array(9)}, ["kernel"], [[9]]),
    ],
)
def test_ranks_are_a_table_of_layers_by_matrices(ranks, columns, grid):
    got, names = rank_grid(ranks)
    np.testing.assert_array_equal(got, np.array(grid, float))
    assert names == columns


@pytest.mark.parametrize("ranks", [STACKED, APART, {"w": np.array([0, 0])}])
def test_a_picture_is_written(ranks, tmp_path):
    rank_map(ranks, tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")


def series(axes):
    """What a legend names, with the points that are drawn for it."""
    handles, labels = axes.get_legend_handles_labels()
    drawn = [h.lines[0] if isinstance(h, ErrorbarContainer) else h for h in handles]
    return {
        label: (list(line.get_xdata()), pytest.approx(list(line.get_ydata())))
        for label, line in zip(labels, drawn, strict=True)
    }


def test_scores_are_drawn_against_the_adapters_parameters(tmp_path):
    scores = {"lora": (0.4, 0.6), "vera": (0.3, 0.3), "head_only": (0.2, 0.1)}
    counts = {"lora": 221_184, "vera": 12_000, "head_only": 0}
    for variant, own in scores.items():
        for seed, score in enumerate(own):
            arg = f"variant={variant},seed={seed}"
            folder = tmp_path / variant / str(seed)
            write(folder, "glue", arg, {"matthews": score}, parameters=counts[variant])
    write(tmp_path / "d", "glue", "variant=dora", {"matthews": None}, status="diverged")
    figure = parameters(recorded_runs.find(tmp_path))
    (axes,) = figure.axes
    found = series(axes)
    assert found.pop("head alone") == ([0, 1], [15.0, 15.0])  # a line across
    assert found == {"LoRA": ([221_184], [50.0]), "VeRA": ([12_000], [30.0])}
    assert axes.get_title() == "MiniLM (all-MiniLM-L6-v2), CoLA"
    assert (axes.get_xscale(), axes.get_ylabel()) == ("log", "Matthews (%)")


def test_training_is_the_mean_over_the_steps_that_all_runs_have(tmp_path):
    losses = {0: (1.0, 0.5, 0.3), 1: (0.8, 0.3)}
    for seed, own in losses.items():
        arg = f"seed={seed}"
        write(tmp_path / str(seed), "glue", arg, {"matthews": 0.4}, losses=own, parameters=1)
    write(tmp_path / "no_log", "glue", "variant=dora", {"matthews": 0.4}, parameters=1)
    loss, score = training(recorded_runs.find(tmp_path)).axes
    assert series(loss) == {"LoRA": ([10, 20], [0.9, 0.4])}
    assert series(score) == {}  # their evaluations were at different steps
    (band,) = loss.collections
    heights = {tuple(np.round(point, 6)) for point in band.get_paths()[0].vertices}
    assert {(10.0, 0.8), (10.0, 1.0), (20.0, 0.3), (20.0, 0.5)} <= heights


def test_learning_rates_make_a_line_a_method_and_held_out_scores_a_panel(tmp_path):
    number = 0
    for rate in ("1e-4", "2e-4"):
        for ratio in (1, 16):
            for seed in range(2):
                number += 1
                score = float(rate) * 1000 + ratio / 100 + seed / 50
                arg = f"task=sst2,rate={rate},ratio={ratio},seed={seed}"
                write(tmp_path / str(number), "lora_plus_ratio", arg, {"accuracy": score})
    changes = {"data.validation": 100}
    arg = "task=sst2,rate=4e-4,ratio=1"
    write(tmp_path / "held", "lora_plus_ratio", arg, {"accuracy": 0.9}, changes=changes)
    draw(tmp_path, "learning_rate", tmp_path / "new" / "rates.png")
    assert (tmp_path / "new" / "rates.png").read_bytes().startswith(b"\x89PNG")
    first, held = learning_rate(recorded_runs.find(tmp_path)).axes
    assert series(first) == {
        "ratio_1": ([1e-4, 2e-4], [12.0, 22.0]),
        "ratio_16": ([1e-4, 2e-4], [27.0, 37.0]),
    }
    assert series(held) == {"ratio_1": ([4e-4], [90.0])}
    assert held.get_title().endswith("SST-2, held-out training examples")


def test_examples_make_a_line_a_method_and_a_panel_a_task(tmp_path):
    """Each number of examples may be a study of its own; one of 0, all examples, is not drawn."""
    drawn = {"sst2_32": (0.5, 0.6), "sst2_128": (0.8, 0.8), "stsb_32": (0.3,)}
    for column, scores in drawn.items():
        metric = "pearson" if "stsb" in column else "accuracy"
        for row in ("lora", "full"):
            for seed, score in enumerate(scores):
                arg = f"task={column},row={row},seed={seed},source=tsv,folder=x"
                folder = tmp_path / column / row / str(seed)
                write(folder, "studies.few_examples", arg, {metric: score})
    figure = examples(recorded_runs.find(tmp_path))
    found = {axes.get_title(): series(axes) for axes in figure.axes if axes.get_visible()}
    assert set(found) == {"MiniLM (all-MiniLM-L6-v2), SST-2", "MiniLM (all-MiniLM-L6-v2), STS-B"}
    lora, full = found["MiniLM (all-MiniLM-L6-v2), SST-2"].values()
    assert lora[1] == [55, 80] and full[1] == [55, 80]
    assert lora[0] == pytest.approx([32 / 1.02, 128 / 1.02], rel=0.01)
    assert full[0] == pytest.approx([32 * 1.02, 128 * 1.02], rel=0.01)
    write(tmp_path / "all", "glue", "variant=lora", {"matthews": 0.5}, changes={"data.train": 0})
    with pytest.raises(ValueError, match="no run has a number of training examples"):
        examples(recorded_runs.find(tmp_path / "all"))


def test_each_setting_has_a_line_with_each_run_once_and_bars_from_three_seeds_on(tmp_path):
    drawn = {2: (0.5, 0.6), 4: (0.7, 0.8, 0.75)}
    for rank, scores in drawn.items():
        for seed, score in enumerate(scores):
            for copy in ("", "_copy"):
                arg = f"task=sst2,variant=lora,seed={seed}"
                changes = {"variant.rank": rank, "data.train": 64}
                how = {"changes": changes, "parameters": 1000 * rank, "losses": (1.0, score)}
                write(tmp_path / f"{rank}_{seed}{copy}", "glue", arg, {"accuracy": score}, **how)
    (axes,) = learning_rate(recorded_runs.find(tmp_path)).axes
    assert {name: y for name, (_, y) in series(axes).items()} == {
        "LoRA, rank 2": [55.0],
        "LoRA, rank 4": [75.0],
    }
    first, second = axes.containers
    assert not first.has_yerr or np.ptp(first[2][0].get_segments()[0][:, 1]) == 0
    low, high = second[2][0].get_segments()[0][:, 1]
    spread = collect_runs.summarise([70.0, 80.0, 75.0], "mean", "ci95").spread
    assert (high - low) / 2 == pytest.approx(spread)
    for kind, of in FIGURES.items():  # a second setting that varies is in the names
        assert len(draw(tmp_path, kind, tmp_path / "all.png")) >= 5
        first = of(recorded_runs.find(tmp_path)).axes[0]
        assert set(series(first)) == {"LoRA, rank 2", "LoRA, rank 4"}


def test_more_lines_than_can_be_told_apart_are_refused(tmp_path):
    for rank in range(1, 42):
        changes = {"variant.rank": rank}
        write(tmp_path / str(rank), "glue", "", {"matthews": 0.5}, changes=changes, parameters=rank)
    with pytest.raises(ValueError, match=r"41 settings are too many.*--kind=heatmap"):
        draw(tmp_path, "parameters", tmp_path / "x.png")


def test_the_ranks_of_one_run_are_drawn(tmp_path):
    ranks = {"layers/query/kernel": [3, 0, 2], "layers/value/kernel": [1, 2, 3]}
    write(tmp_path / "a", "glue", "variant=adalora", {"matthews": 0.4}, ranks=ranks)
    draw(tmp_path, "ranks", tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")
    write(tmp_path / "b", "glue", "variant=adalora,seed=1", {"matthews": 0.4}, ranks=ranks)
    with pytest.raises(ValueError, match="draws one run"):
        draw(tmp_path, "ranks", tmp_path / "ranks.png")


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match="has no runs: name the --workdir of a run or a sweep"):
        draw(tmp_path, "parameters", tmp_path / "x.png")
    write(tmp_path / "a", "glue", "", {"matthews": None}, status="failed")
    with pytest.raises(ValueError, match=r"no run of size full has completed \(1 failed\)"):
        draw(tmp_path, "training", tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"record\.json is a file: name its folder"):
        draw(tmp_path / "a" / "record.json", "training", tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"--table=glu: no runs of it in .*; nearest: 'glue'"):
        draw(tmp_path, "training", tmp_path / "x.png", table="glu")
    assert not (tmp_path / "x.png").exists()


def test_points_are_what_the_table_says(tmp_path):
    """The median of the best evaluations, where that is a paper's protocol."""
    for seed, best in enumerate((0.5, 0.6, 0.9)):
        arg = f"model=roberta_base,task=cola,seed={seed}"
        how = {"parameters": 294_912, "metrics_best": {"matthews": best}}
        write(tmp_path / str(seed), "lora_table2", arg, {"matthews": 0.1}, **how)
    figure = parameters(recorded_runs.find(tmp_path))
    assert series(figure.axes[0]) == {"LoRA": ([294_912], [60.0])}
    said = "median of runs at their best evaluation ± standard deviation"
    assert figure.get_supxlabel() == said


def test_no_two_of_many_methods_look_alike(tmp_path):
    for number, row in enumerate(("lora", "dora", "pissa", "vera", "full", "bitfit", "head_only")):
        for storage in ("none", "nf4", "int8"):
            arg = f"variant={row},storage={storage}"
            losses = tuple(1 / step for step in range(1, 13))  # so many that none has a marker
            folder = tmp_path / f"{row}_{storage}"
            write(folder, "glue", arg, {"matthews": 0.5}, losses=losses, parameters=10**number)
    loss, _ = training(recorded_runs.find(tmp_path)).axes
    looks = {(line.get_color(), line.get_linestyle()) for line in loss.lines}
    assert len(loss.lines) == len(looks) == 21


@pytest.mark.filterwarnings("error")
def test_a_legend_of_many_names_leaves_room_for_the_points(tmp_path):
    for rank in (8, 1, 2, 4, 16, 32, 64):
        for targets in ("qv", "qkvo", "all", "all_last_half", "all_every_other"):
            arg = f"targets={targets},rank={rank}"
            write(tmp_path / arg, "targets", arg, {"matthews": 0.5}, parameters=rank)
    figure = parameters(recorded_runs.find(tmp_path))
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    box, whole = axes.get_window_extent(), axes.get_tightbbox()
    assert box.width > 0.3 * figure.bbox.width and box.height > 0.6 * figure.bbox.height
    assert whole is not None and whole.y0 >= 0 and whole.y1 <= figure.bbox.height


def test_labels_do_not_overlap(tmp_path):
    for number, variant in enumerate(
        ("lora", "dora", "pissa", "adalora", "vera", "full", "bitfit")
    ):
        for task, metric in (("cola", "matthews"), ("sst2", "accuracy"), ("rte", "accuracy")):
            arg = f"task={task},variant={variant}"
            folder = tmp_path / task / variant
            write(folder, "glue", arg, {metric: 0.5}, parameters=10**number, losses=(1.0, 0.5))
    found = recorded_runs.find(tmp_path)
    for kind in ("parameters", "training", "learning_rate"):
        figure = FIGURES[kind](found)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        shown = [axes for axes in figure.axes if axes.get_visible()]
        assert len(shown) == (6 if kind == "training" else 3)
        boxes = [axes.get_tightbbox(renderer) for axes in shown]  # with titles and legends
        for one, two in itertools.combinations(boxes, 2):
            assert one is not None and two is not None
            assert not one.overlaps(two)
        whole = figure.bbox
        for box in boxes:
            assert whole.x0 - 1 <= box.x0 and box.x1 <= whole.x1 + 1
            assert whole.y0 - 1 <= box.y0 and box.y1 <= whole.y1 + 1
