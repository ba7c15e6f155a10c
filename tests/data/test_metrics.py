"""Scores against their formulas, and the papers' averages against the ones that they print."""

import dataclasses
import itertools
import math

import numpy as np
import paper_averages
import pytest
import sklearn.metrics
from one_line import refuses

from experiments.analysis.collect_runs import Summary
from experiments.reports.tables import cells
from lora_jax.data import Examples, Task
from lora_jax.data.metrics import label_metrics


def draw(seed, count=60, classes=2):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)).astype(np.float32)
    labels = rng.integers(0, classes, count)
    return logits, labels


@pytest.mark.filterwarnings("ignore:A single label was found")  # of scikit-learn
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("count", [2, 5, 300])  # of few examples, some classes are absent
def test_classification_as_scikit_learn_has_it_to_the_last_digit(count, classes):
    average = "binary" if classes == 2 else "macro"
    for seed in range(20):
        logits, labels = draw(seed, count, classes)
        predicted, p = logits.argmax(1), np.exp(logits.astype(np.float64))
        f1 = sklearn.metrics.f1_score(labels, predicted, average=average, zero_division=0.0)
        matthews = sklearn.metrics.matthews_corrcoef(labels, predicted)
        found = label_metrics.score(
            ("f1", "matthews", "accuracy", "accuracy_f1", "eval_loss"), logits, labels
        )
        assert (found["f1"], found["matthews"]) == (f1, matthews)
        assert found["accuracy"] == np.mean(predicted == labels)
        assert found["accuracy_f1"] == pytest.approx((found["accuracy"] + f1) / 2)
        losses = np.log(p.sum(1)) - logits[np.arange(count), labels]
        assert found["eval_loss"] == pytest.approx(losses.mean())


def ranks(values):
    """Ranks, ties sharing their mean."""
    return np.array([np.mean(np.flatnonzero(np.sort(values) == value)) for value in values])


@pytest.mark.parametrize("seed", range(5))
def test_regression_by_the_formulas(seed):
    rng = np.random.default_rng(seed)
    targets = np.round(rng.uniform(0, 5, 50), 1)  # with ties
    outputs = (targets + rng.normal(size=50)).astype(np.float32)[:, None]
    found = label_metrics.score(
        ("pearson", "spearman", "pearson_spearman", "eval_loss"), outputs, targets
    )
    values = outputs[:, 0].astype(np.float64)
    pearson = np.corrcoef(values, targets)[0, 1]
    spearman = np.corrcoef(ranks(values), ranks(targets))[0, 1]
    assert found["pearson"] == pytest.approx(pearson)
    assert found["spearman"] == pytest.approx(spearman)
    assert found["pearson_spearman"] == pytest.approx((pearson + spearman) / 2)
    assert found["eval_loss"] == pytest.approx(np.mean((values - targets) ** 2))


@pytest.mark.parametrize("constant", [0, 1])
@pytest.mark.parametrize("labels", [[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
def test_constant_predictions_score_0_without_a_warning(constant, labels):
    logits = np.zeros((4, 2), np.float32)
    logits[:, constant] = 3
    labels = np.array(labels)
    found = label_metrics.score(("accuracy", "f1", "matthews", "accuracy_f1"), logits, labels)
    assert found["matthews"] == 0
    assert found["accuracy"] == np.mean(labels == constant)
    right = constant * labels.mean()  # of the examples that are all called class 1
    assert found["f1"] == pytest.approx(2 * right / (1 + right) if right else 0)


@pytest.mark.parametrize("values", [[1, 1, 1], [0, 0, 0], [-3e38] * 3])
def test_constant_values_do_not_correlate(values):
    outputs = np.array(values, np.float64)[:, None]
    names = ("pearson", "spearman", "pearson_spearman")
    assert label_metrics.score(names, outputs, np.array([1.0, 2, 3])) == dict.fromkeys(names, 0)
    spread = np.array([[1.0], [2], [3]])
    assert label_metrics.score(names, spread, np.array([2.0, 2, 2])) == dict.fromkeys(names, 0)
    assert label_metrics.score(names, spread[:1], np.array([2.0])) == dict.fromkeys(names, 0)


def test_values_that_barely_differ_give_no_warning():
    outputs = np.array([[1.0], [1.0], [np.nextafter(1, 2)]])
    found = label_metrics.score(("pearson", "spearman"), outputs, np.array([1.0, 2, 3]))
    assert found["spearman"] == pytest.approx(math.sqrt(3) / 2)
    assert -1 <= found["pearson"] <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_no_numbers_are_wrong_and_never_nan(bad):
    logits = np.array([[0, bad], [bad, 0], [bad, bad], [0, 1]], np.float32)
    names = ("accuracy", "f1", "matthews", "accuracy_f1", "eval_loss")
    for labels in ([1, 0, 1, 1], [0, 1, 0, 1]):
        found = label_metrics.score(names, logits, np.array(labels))
        assert found["accuracy"] == 0.25
        assert found["eval_loss"] == np.inf
        assert not any(math.isnan(value) for value in found.values())
        assert (
            label_metrics.score(("accuracy",), logits, np.array([1, 0, 1, 0]), choices=2)[
                "accuracy"
            ]
            == 0
        )
    names = ("pearson", "spearman", "pearson_spearman", "eval_loss")
    found = label_metrics.score(names, np.array([[1], [bad], [2]]), np.array([1.0, 2, 3]))
    assert list(found.values()) == [0, 0, 0, np.inf]


@pytest.mark.parametrize("classes", [2, 3])
def test_rows_that_are_no_numbers_count_as_a_wrong_class(classes):
    logits, labels = draw(3, classes=classes)
    bad, wrong = logits.copy(), logits.copy()
    for row, value in zip(range(0, 60, 7), itertools.cycle([np.nan, np.inf])):
        bad[row, labels[row]] = value  # where the largest would be right
        wrong[row] = np.eye(classes)[(labels[row] + 1) % classes]
    names = ("accuracy", "f1", "matthews", "accuracy_f1")
    assert label_metrics.score(names, bad, labels) == label_metrics.score(names, wrong, labels)


def test_accuracy_of_choices_is_over_questions():
    # Every single example is called "wrong", and yet two of the three questions are right. Rows
    # have offsets of their own, so that neither logit alone says so.
    logits = np.array([[7, 3], [5, 2], [9, 3], [5, -3], [4, 0], [3.5, 0.5]], np.float32)
    labels = np.array([0, 1, 1, 0, 1, 0])
    examples = Examples("copa", list("abcdef"), labels)
    task = Task("copa", examples, examples, ("wrong", "right"), choices=2)
    assert label_metrics.score(task, logits, labels)["accuracy"] == pytest.approx(2 / 3)
    assert label_metrics.score(("accuracy",), logits, labels)["accuracy"] == 0.5


def test_parts_of_a_task():
    logits, labels = draw(0, 30, 3)
    part = Examples("m", [f"t{i}" for i in range(30)], labels)
    other = part.take(range(20))
    task = Task("mnli", part, part, ("e", "n", "c"), extra={"mismatched": other})
    assert set(label_metrics.score(task, logits, labels)) == {"accuracy", "eval_loss"}
    turned = np.roll(logits[:20], 1, 1)
    found = label_metrics.score_parts(task, {"validation": logits, "mismatched": turned})
    assert found["accuracy"] == np.mean(logits.argmax(1) == labels)
    assert found["accuracy_mismatched"] == np.mean(turned.argmax(1) == labels[:20])
    assert found["accuracy_mismatched"] != found["accuracy"]
    mean = (found["accuracy"] + found["accuracy_mismatched"]) / 2
    assert found["accuracy_m_mm"] == pytest.approx(mean)
    assert "eval_loss_mismatched" in found
    own = dataclasses.replace(task, extra_metrics={"mismatched": ("matthews",)})
    found = label_metrics.score_parts(own, {"validation": logits, "mismatched": turned})
    assert set(found) == {"accuracy", "eval_loss", "matthews_mismatched", "eval_loss_mismatched"}
    refuses(
        "no part 'mismatch'; nearest: 'mismatched'",
        label_metrics.score_parts,
        task,
        {"mismatch": turned},
    )


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("acuracy", [0, 1], "unknown metric 'acuracy' of these outputs; nearest: 'accuracy'"),
        ("pearson", [0, 1], "unknown metric 'pearson' of these outputs"),
        ("accuracy", None, "2 outputs cannot be scored against 0 labels"),
        ("accuracy", [0], "2 outputs cannot be scored against 1 labels"),
        ("accuracy", [0, 2], "labels must be classes, from 0 to 1"),
    ],
)
def test_what_cannot_be_scored_is_named(name, labels, message):
    labels = None if labels is None else np.array(labels)
    refuses(message, label_metrics.score, (name,), np.eye(2), labels)


# Rows as the papers print them: the average, then its numbers in the order of their columns.
PRINTED = [
    ("lora_table2", 87.2, [87.5, 95.1, 89.7, 63.4, 93.3, 90.8, 86.6, 91.5]),  # RoBERTa-base LoRA
    ("adalora_table1", 88.34, [90.65, 90.69, 94.95, 69.82, 91.99, 89.38, 93.87, 85.2, 89.95, 91.6]),
    (
        "adalora_table1",
        89.31,
        [90.76, 90.79, 96.1, 71.45, 92.23, 89.74, 94.55, 88.09, 90.69, 91.84],
    ),
    ("pissa_table3", 88.50, [90.65, 94.95, 89.95, 69.82, 93.87, 91.99, 85.2, 91.6]),  # LoRA
    ("pissa_table3", 89.46, [90.76, 96.1, 90.69, 71.45, 94.55, 92.23, 88.09, 91.84]),  # AdaLoRA
    ("pissa_table3", 89.83, [90.37, 96.22, 91.5, 73.12, 94.43, 92.33, 88.69, 92.0]),  # PiSSA
    ("vera_table2", 85.2, [94.6, 89.5, 65.6, 91.8, 78.7, 90.7]),  # RoBERTa-base VeRA
]


def row_of(name, numbers):
    """The columns of a table's average, and their cells; a number that is None was not run."""
    names = [(task, metric) for task, ms in paper_averages.AVERAGES[name].items() for metric in ms]
    columns = [cells.Column("", task, metric) for task, metric in names]
    own = [None if each is None else Summary(each, None, 1) for each in numbers]
    return columns, [cells.Cell(each) for each in own]


@pytest.mark.parametrize(("name", "printed", "numbers"), PRINTED)
def test_averages_are_those_that_the_papers_print(name, printed, numbers):
    columns, own = row_of(name, numbers)
    found = cells.average(columns, own).centre
    digits = len(str(printed).split(".")[1])
    half = 0.5 * 10 ** -(1 if name in ("lora_table2", "vera_table2") else max(2, digits))
    assert abs(found - printed) <= half + 1e-9
    more = [cells.Column("Average", "average", ""), cells.Column("", "glue/wnli", "accuracy")]
    beside = [cells.Cell(Summary(0.0, None, 1)), cells.Cell(runnable=False)]
    assert cells.average([*columns, *more], [*own, *beside]).centre == found  # nothing else counts


@pytest.mark.parametrize(("name", "printed", "numbers"), PRINTED)
def test_an_average_with_a_gap_is_none(name, printed, numbers):
    """A mean over fewer tasks is not comparable."""
    for place in range(len(numbers)):
        with_gap = [*numbers[:place], None, *numbers[place + 1 :]]
        assert cells.average(*row_of(name, with_gap)) is None
