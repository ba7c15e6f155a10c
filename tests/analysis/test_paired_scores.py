"""Scores by seed, from records as they are written: completed, diverged and failed runs."""

import dataclasses

import numpy as np
import pytest
from fake_records import write
from planted_scores import contest, run
from report_study import made

from experiments.analysis import paired_scores
from experiments.analysis.gains import gains
from experiments.analysis.paired_scores import common, scored, table


def record(folder, method, seed, accuracy, **fields):
    scores = {} if accuracy is None else {"accuracy": accuracy}
    write(
        folder / method / str(seed),
        "glue",
        f"task=sst2,variant={method},seed={seed}",
        scores,
        **fields,
    )


@pytest.fixture
def folder(tmp_path):
    """LoRA with five seeds; DoRA diverged with one, VeRA failed with one, AdaLoRA left no score."""
    for seed in range(5):
        record(tmp_path, "lora", seed, 0.80 + seed / 100)
    for seed, accuracy in enumerate((0.82, 0.82, 0.83, 0.85)):
        record(tmp_path, "dora", seed, accuracy)
        record(tmp_path, "vera", seed, accuracy - 0.03)
        record(tmp_path, "adalora", seed, accuracy)
    record(tmp_path, "dora", 4, 0.5, status="diverged", best_step=None)
    record(tmp_path, "vera", 4, None, status="failed", note="killed")
    record(tmp_path, "adalora", 4, None, status="diverged", best_step=None)
    return tmp_path


def test_records_are_scored_in_points_and_none_is_dropped_in_silence(folder):
    (own,) = made(folder)
    every = {method.key: scored(method) for method in own.methods}
    assert every["dora"].scores == pytest.approx(
        {(0, 0): 82, (1, 0): 82, (2, 0): 83, (3, 0): 85, (4, 0): 50}
    )
    assert every["dora"].notes == ("seed 4 diverged and counts with the last score",)
    assert len(every["vera"].scores) == 4 and every["vera"].notes == ("seed 4 failed",)
    assert every["adalora"].scores == {} and "no number" in every["adalora"].notes[0]
    ours, theirs, said = common(every["vera"], every["lora"])
    np.testing.assert_allclose(ours - theirs, [-1, -2, -2, -1])
    assert said == "4 of 5 seeds in common"
    found = gains([own], reference="lora", margin=1.0)
    means = {each.key: each.over_tasks.mean for each in found.methods}
    assert means == pytest.approx({"dora": (2 + 1 + 1 + 2 - 34) / 5, "vera": -1.5})
    assert found.notes[0] == "AdaLoRA has no number on any task"


def test_a_table_has_the_methods_and_seeds_of_all_tasks():
    one = contest("cola", {"lora": [80.0, 81, 82], "dora": [85.0, 86], "vera": [1.0, 2, 3]})
    other = contest(
        "mrpc", {"dora": [87.0, 88, 89], "lora": [83.0, 84, 85]}, {"eva": [run(0, None)]}
    )
    found = table([one, other])
    assert (found.labels, found.seeds) == (("LORA", "DORA"), (0, 1))
    np.testing.assert_array_equal(found.scores, [[[80, 81], [85, 86]], [[83, 84], [87, 88]]])
    assert found.notes == (
        "VERA is left out, as it has no number on one of the tasks",
        "2 of 3 seeds count, as the others lack a method or a task",
    )
    late = contest("cola", {"dora": []}, {"dora": [run(2, 7.0), run(1, 5.0), run(3, 6.0)]})
    both = contest("cola", {"lora": [80.0, 81, 82]}).methods + late.methods
    found_late = table([dataclasses.replace(one, methods=both)])  # seeds go by their numbers
    assert found_late.seeds == (1, 2)
    np.testing.assert_array_equal(found_late.scores, [[[81, 82], [5, 7]]])
    assert table([one], ("vera", "lora")).scores.shape == (1, 2, 3)
    assert table([one], ("eva",)).scores.shape == (1, 0, 0)
    for method in other.methods:
        for each in method.runs:
            each.number = (each.number[0], 0)  # of all examples, none are drawn
    again = table([one, other])
    np.testing.assert_array_equal(again.scores, found.scores)
    assert (again.seeds, again.notes) == (found.seeds, found.notes)


def test_each_method_has_noise_of_its_own():
    cola = contest(
        "cola", {"lora": [80.0, 81, 83], "dora": [81.0, 80, 85], "vera": [79.0, 82], "eva": [1.0]}
    )
    rte = contest("rte", {"vera": [50.0, 58], "lora": [50.0, 54]})
    found = paired_scores.noise_of_seeds([cola, rte], "lora")
    assert [each.label for each in found] == ["DORA", "VERA"]
    dora, vera = found
    differences = {"CoLA": np.std([-1, 1], ddof=1), "RTE": np.std([0, 4], ddof=1)}
    assert dora.deviations == pytest.approx({"CoLA": np.std([1, -1, 2], ddof=1)})
    assert vera.deviations == pytest.approx(differences)
    assert vera.mean.error == pytest.approx(np.hypot(*differences.values()) / 2 / np.sqrt(2))
    apart = np.var([79, 82], ddof=1) + np.var([80, 81], ddof=1)
    apart += np.var([50, 58], ddof=1) + np.var([50, 54], ddof=1)
    assert vera.pairing.ratio == pytest.approx(sum(np.square([*differences.values()])) / apart)
    assert [each.label for each in paired_scores.noise_of_seeds([cola, rte], "dora")] == [
        "LORA",
        "VERA",
    ]
    # Differences that are equal but for roundings have none.
    known = np.array([0.7, 0.8, 0.9])
    equal = contest("cola", {"lora": 100 * known, "dora": 100 * (known + 5 / 872)})
    (same,) = paired_scores.noise_of_seeds([equal], "lora")
    assert same.deviations == {"CoLA": 0}
    assert (
        paired_scores.noise_of_seeds([cola], "eva")
        == paired_scores.noise_of_seeds([cola], "full")
        == []
    )
