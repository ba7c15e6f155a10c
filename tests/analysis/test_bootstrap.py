"""Bootstrap replicates: each is the metric of its resample, as `label_metrics` has it."""

import numpy as np
import pytest

from experiments.analysis import bootstrap
from lora_jax.data.metrics import label_metrics

COUNT = 20


def expected(metric, outputs, labels, seed, choices=1):
    """The metric of every resample, made of the examples themselves, one after the other."""
    questions = len(labels) // choices
    found = []
    for row in np.concatenate(list(bootstrap.weights(questions, COUNT, seed))):
        first = np.repeat(np.arange(questions), row.astype(int)) * choices
        index = (first[:, None] + np.arange(choices)).ravel()
        found.append(label_metrics.score((metric,), outputs[index], labels[index], choices)[metric])
    return np.array(found)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("metric", label_metrics.CLASSIFICATION)
@pytest.mark.parametrize("n", [5, 80])  # of five, some resamples have one class only
def test_metrics_of_classes(metric, classes, n):
    rng = np.random.default_rng(n)
    labels = rng.integers(classes, size=n)
    outputs = rng.normal(size=(n, classes)).round(1) + np.eye(classes)[labels]
    got = bootstrap.replicates(metric, [outputs, -outputs], labels, resamples=COUNT, seed=3)
    np.testing.assert_allclose(got[0], expected(metric, outputs, labels, 3), atol=1e-12)
    np.testing.assert_allclose(got[1], expected(metric, -outputs, labels, 3), atol=1e-12)


@pytest.mark.parametrize("metric", label_metrics.REGRESSION)
@pytest.mark.parametrize("n", [4, 80])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_metrics_of_numbers(metric, n, offset):
    rng = np.random.default_rng(n)
    labels = rng.integers(1, 6, size=n).astype(float)  # with ties
    outputs = (labels + rng.normal(size=n)).round()[:, None] + offset
    got = bootstrap.replicates(metric, [outputs], labels, resamples=COUNT, seed=1)[0]
    np.testing.assert_allclose(got, expected(metric, outputs, labels, 1), atol=1e-9)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews", "eval_loss"])
def test_questions_of_two_choices_are_drawn_whole(metric):
    rng = np.random.default_rng(0)
    right = rng.integers(2, size=40)
    labels = np.eye(2, dtype=int)[right].ravel()
    outputs = rng.normal(size=(80, 2))
    got = bootstrap.replicates(metric, [outputs], labels, choices=2, resamples=COUNT)[0]
    np.testing.assert_allclose(got, expected(metric, outputs, labels, 0, 2), atol=1e-12)


def left_out(metric, outputs, labels, choices=1):
    """The jackknife's values, made of the questions themselves, each left out in turn."""

    def score(rows):
        rows = (rows[:, None] * choices + np.arange(choices)).ravel()
        return label_metrics.score((metric,), outputs[rows], labels[rows], choices)[metric]

    every = np.arange(n := len(labels) // choices)
    whole = score(every)
    return np.array([n * whole - (n - 1) * score(np.delete(every, each)) for each in every])


@pytest.mark.parametrize(
    ("known", "choices"), [("CLASSIFICATION", 1), ("CLASSIFICATION", 2), ("REGRESSION", 1)]
)
@pytest.mark.parametrize("piece", [50, 10_000])
def test_what_examples_add_to_a_metric(known, choices, piece, monkeypatch):
    monkeypatch.setattr(bootstrap, "CHUNK", piece)
    rng = np.random.default_rng(choices)
    for metric in getattr(label_metrics, known):
        if known == "REGRESSION":
            labels = rng.integers(1, 6, size=40).astype(float)  # with ties
            outputs = (labels + rng.normal(size=40)).round()[:, None]
        else:
            labels = rng.integers(2, size=40)
            if choices > 1:
                labels = np.eye(choices, dtype=int)[labels].ravel()
            outputs = rng.normal(size=(len(labels), 2)) + np.eye(2)[labels]
        got = bootstrap.pseudovalues(metric, outputs, labels, choices=choices)
        np.testing.assert_allclose(got, left_out(metric, outputs, labels, choices), atol=1e-8)
    if known == "CLASSIFICATION":
        right = label_metrics.correct(outputs, labels, choices)
        got = bootstrap.pseudovalues("accuracy", outputs, labels, choices=choices)
        np.testing.assert_allclose(got, right, atol=1e-12)


def test_a_seed_draws_resamples_of_its_own():
    first, again, other = (np.concatenate([*bootstrap.weights(9, 20, seed)]) for seed in (3, 3, 5))
    assert (first == again).all() and (first != other).any(1).mean() > 0.9
    assert (first.sum(1) == 9).all()
