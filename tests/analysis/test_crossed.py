"""The error over crossed seeds and examples: exact expectations, the textbook, planted studies."""

import crossed_studies
import numpy as np
import pytest
from crossed_studies import Planted
from planted_scores import contest
from scipy import stats

from experiments.analysis.gains import all_pairs, gains
from experiments.analysis.significance import over_both, over_seeds, squares


def test_the_variance_is_unbiased():
    """Exactly: a quadratic form's mean is its sum over the independent parts of what is drawn."""
    seeds, examples, sds = 4, 5, (0.7, 1.9, 1.3)
    by_seed, by_example, cells = np.eye(seeds), np.eye(examples), np.eye(seeds * examples)
    parts = [sds[0] * np.repeat(row[:, None], examples, 1) for row in by_seed]
    parts += [sds[1] * np.repeat(row[None], seeds, 0) for row in by_example]
    parts += [sds[2] * row.reshape(seeds, examples) for row in cells]
    found = [squares(each.mean(1), each) for each in parts]
    expected = sds[0] ** 2 / seeds + sds[1] ** 2 / examples + sds[2] ** 2 / (seeds * examples)
    assert sum(e.seeds + e.examples - e.rest for e in found) == pytest.approx(expected)
    assert sum(e.rest for e in found) == pytest.approx(sds[2] ** 2 / (seeds * examples))


@pytest.mark.parametrize("seeds", [4, 12])
def test_accuracies_by_the_analysis_of_variance(seeds):
    rng, n = np.random.default_rng(seeds), 60
    scores, right = Planted(n).draw(rng, seeds, methods=2)
    d, mean = right[0] - right[1], (right[0] - right[1]).mean()
    of_seeds = n * sum((row.mean() - mean) ** 2 for row in d) / (seeds - 1)
    of_examples = seeds * sum((column.mean() - mean) ** 2 for column in d.T) / (n - 1)
    whole = ((d - mean) ** 2).sum()
    rest = whole - (seeds - 1) * of_seeds - (n - 1) * of_examples
    rest /= (seeds - 1) * (n - 1)
    largest = max(of_seeds + of_examples - rest, of_seeds, of_examples)
    found = over_both(*scores, *right)
    assert found.error == pytest.approx(np.sqrt(largest / (seeds * n)), rel=1e-9)
    assert found.error > over_seeds(*scores).error and found.n == seeds
    free = largest**2 / (
        of_seeds**2 / (seeds - 1) + of_examples**2 / (n - 1) + rest**2 / ((seeds - 1) * (n - 1))
    )
    assert found.df == pytest.approx(free if seeds >= 10 else seeds - 1)
    swapped = over_both(*scores[::-1], *right[::-1])
    assert (swapped.mean, swapped.error, swapped.df) == (-found.mean, found.error, found.df)


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("name", ["300 examples", "300, seeds alike", "300, Matthews"])
def test_intervals_cover_and_families_keep_their_level(name, seeds):
    """Within binomial error; seeds alone are not enough where examples make the noise."""
    studies = 60 if "Matthews" in name else 200
    both, alone, cautious = crossed_studies.shares(crossed_studies.STUDIES[name], seeds, studies)
    independent = 2 * studies  # the five differences of a study share its reference
    assert both[0] >= stats.binom.ppf(0.001, independent, 0.95) / independent
    assert both[1] <= stats.binom.ppf(0.999, studies, 0.05) / studies
    assert alone[0] < both[0] <= cautious[0]
    if seeds == 10:
        assert both[0] <= stats.binom.ppf(0.999, independent, 0.95) / independent


def planted(rng, seeds=10):
    """Two tasks of three methods, as contests and as values of examples."""
    made, values = [], {}
    for task, n in (("mrpc", 120), ("rte", 80)):
        scores, right = Planted(n).draw(rng, seeds, methods=3)
        keys = ("lora", "dora", "vera")
        made.append(contest(task, dict(zip(keys, scores, strict=True))))
        by_seed = [{(s, s): row for s, row in enumerate(own)} for own in right]
        values[task] = dict(zip(keys, by_seed, strict=True))
    return made, values


def test_gains_are_over_both_and_keep_what_seeds_alone_say():
    made, values = planted(np.random.default_rng(1))
    study = {"reference": "lora", "margin": 8.0}
    both, alone = gains(made, **study, examples=values), gains(made, **study)
    for ours, theirs in zip(both.methods, alone.methods, strict=True):
        assert theirs.seeds_alone is None
        assert ours.seeds_alone.over_tasks == theirs.over_tasks
        said = (ours.seeds_alone.adjusted, ours.seeds_alone.equivalent, ours.seeds_alone.verdict)
        assert said == (theirs.adjusted, theirs.equivalent, theirs.verdict)
        errors, free = [], []
        for task, own in values.items():
            arrays = [np.array([*own[key].values()]) for key in (ours.key, "lora")]
            found = over_both(*(each.mean(1) for each in arrays), *arrays)
            low, high = found.interval()
            assert (ours.by_task[task].low, ours.by_task[task].high) == pytest.approx((low, high))
            errors.append(found.error)
            free.append(found.df)
        error = np.hypot(*errors) / 2
        df = sum(e**2 for e in errors) ** 2 / sum(
            e**4 / f for e, f in zip(errors, free, strict=True)
        )
        half = stats.t.isf(0.025, df) * error
        assert ours.over_tasks.high - ours.over_tasks.mean == pytest.approx(half)
    pair = all_pairs(made, **study, examples=values)[1].methods[0]
    assert (pair.key, pair.seeds_alone.over_tasks.n) == ("vera", 10)


def test_a_task_without_predictions_is_tested_over_seeds_alone():
    made, values = planted(np.random.default_rng(2))
    del values["rte"]["dora"][3, 3]
    dora, vera = gains(made, reference="lora", margin=8.0, examples=values).methods
    assert dora.notes == (
        "RTE: tested over seeds alone, as predictions of 9 of 10 common seeds are known",
    )
    assert vera.notes == ()
    (lone, _) = gains(made, reference="lora", margin=8.0).methods
    assert dora.by_task["rte"] == lone.by_task["rte"]
    assert dora.by_task["mrpc"].low != lone.by_task["mrpc"].low
