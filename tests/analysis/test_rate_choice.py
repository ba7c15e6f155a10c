"""The lead of a chosen rate, and how often resamples of the held-out examples choose it again."""

import numpy as np
import pytest
from fake_records import planted, write
from report_study import HELD, made, methods, wrong

from experiments.analysis import rate_choice

RATES = (3e-4, 1e-3, 3e-3)


def choice(root, metric="accuracy"):
    """That of the only method."""
    (method,) = methods(root).values()
    return method.chosen.rate, rate_choice.of_method(method, metric)


def plant(root, wrongs, seed=100, task="sst2"):
    """A run of each rate that gets these held-out examples wrong; each seed draws its own."""
    changes = {"data.validation": len(HELD), "data.train": 300, "data.draw": seed}
    for rate, mask in zip(RATES, wrongs, strict=False):
        folder = root / f"{rate}" / str(seed)
        planted(folder, "lora", seed, HELD, mask, rate=rate, task=task, changes=changes)


def distribution(lost, won):
    """The probabilities of the sum of a resample's differences, each -1, 0 or 1."""
    of_one, whole = [np.mean(lost), 1 - np.mean(lost) - np.mean(won), np.mean(won)], np.ones(1)
    for _ in range(len(HELD)):
        whole = np.convolve(whole, of_one)
    return whole


@pytest.mark.parametrize("seeds", [(100,), (100, 101)])
@pytest.mark.parametrize("better", [0, 1])
def test_the_share_of_two_rates_has_a_closed_form(seeds, better, tmp_path):
    """The lower rate has the ties."""
    whole = np.ones(1)
    for seed in seeds:
        masks = [wrong(0.20, seed, len(HELD)), wrong(0.30, seed + 50, len(HELD))]
        first, second = masks if better == 0 else masks[::-1]
        plant(tmp_path, [first, second], seed)
        whole = np.convolve(whole, distribution(first & ~second, second & ~first))
    middle = len(whole) // 2
    lower = whole[middle:].sum()
    expected = lower if better == 0 else 1 - lower
    rate, found = choice(tmp_path)
    assert rate == RATES[better] and found.lead == pytest.approx(10)
    assert 0.7 < expected < 0.99 and found.chosen_in == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("scores", "chosen", "lead", "collapse"),
    [
        ((0.80, 0.83, 0.825), 1, 0.5, False),
        ((0.80, 0.83, 0.83), 1, 0.0, False),  # the lower rate of equal ones
        ((0.80, 0.83, 0.73), 1, 3.0, False),  # 10 points are no collapse
        ((0.83, 0.72, 0.80), 0, 3.0, True),
        ((0.80, 0.83, None), 1, 3.0, True),  # None diverged
        ((0.83, None, None), 0, None, True),
        ((0.83,), 0, None, False),
    ],
)
def test_the_lead_and_a_collapse_one_step_above(scores, chosen, lead, collapse, tmp_path):
    for rate, score in zip(RATES, scores, strict=False):
        changes = {"optimizer.learning_rate": rate, "data.validation": 60, "seed": 100}
        how = {} if score is not None else {"status": "diverged", "best_step": None}
        known = {} if score is None else {"accuracy": score}
        write(tmp_path / f"{rate}", "glue", "task=sst2,variant=lora", known, changes=changes, **how)
    rate, found = choice(tmp_path)
    assert rate == RATES[chosen] and found == rate_choice.Choice(lead, None, collapse)
    notes = list(rate_choice.notes(made(tmp_path), [{"lora": found}]))
    assert len(notes) == (lead is not None)
    for note in notes:
        close = int(lead < 1)
        assert f"In {close} of 1 cells (a method on a task)" in note
        assert f"by less than a point: SST-2 {close} of 1." in note
        assert "rates a factor of 3.2 apart, chosen by 1 run of each." in note
        assert ("lost more than 10 points, on SST-2 (LoRA): there" in note) == collapse
        assert "Predictions of tuning runs were not kept" in note
