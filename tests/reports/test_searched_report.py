"""Reports of methods whose settings were searched by successive halving."""

import report_study
from report_study import RATES, made, tuned, tuning

from experiments.analysis import choose_methods
from experiments.reports import plots


def rung(step, score, place, kept):
    return {"step": step, "score": score, "place": place, "trials": 3, "kept": kept}


def test_a_stopped_trial_is_never_chosen_and_budgets_are_counted_in_steps(tmp_path):
    """Its score at a rung is better than that of the one that was trained to the end."""
    tuned(tmp_path, "dora", (0.3, 0.2, 0.3), (0.2, 0.3), RATES[1])
    for place, (rate, share) in enumerate(zip(RATES, (0.1, 0.2, 0.4), strict=False)):
        how = {"rungs": [rung(10, 1 - share, 1 + place, 1)], "steps": 10, "best_step": None}
        how |= {"status": "stopped", "note": "stopped at rung 1"}
        if place == 1:
            how = {"rungs": [rung(10, 0.7, 1, 1)]}
        tuning(tmp_path / "lora" / f"{rate}", "lora", rate, share, **how)
    (contest,) = made(tmp_path)
    lora, dora = (next(m for m in contest.methods if m.key == key) for key in ("lora", "dora"))
    assert lora.chosen.rate == RATES[1]
    assert choose_methods.any_stopped([lora]) and not choose_methods.any_stopped([dora])
    assert (lora.steps, dora.steps) == (10 + 100 + 10, 300)
    assert lora.budget == dora.budget == (3, 3)
    text = report_study.said(tmp_path)
    assert "Budgets differ: 3 settings in 3 runs of 120 steps together for LoRA; " in text
    assert "3 settings in 3 runs of 300 steps together for DoRA" in text

    drawn = plots.halving_picture(contest)
    assert "n = 3 trials, of which 1 trained to the end" in drawn.caption
    assert "120 training steps in all" in drawn.caption
    lines = drawn.figure.axes[0].lines
    longest = max(lines, key=lambda line: len(line.get_xdata()))
    assert list(longest.get_xdata()) == [10, 100]
    assert list(longest.get_ydata()) == [70.0, 80.0]
    assert "2 were stopped (grey" in drawn.caption

    how = {"rungs": [rung(10, 0.9, 1, 1)], "steps": 20, "best_step": None, "status": "diverged"}
    tuning(tmp_path / "lora" / "more", "lora", 1e-1, 0.1, **how)
    assert "2 were stopped and 1 diverged (grey" in plots.halving_picture(made(tmp_path)[0]).caption


def test_without_halving_there_is_no_such_picture(tmp_path):
    tuned(tmp_path, "lora", (0.3, 0.2), (0.2,), RATES[1])
    (contest,) = made(tmp_path)
    assert plots.halving_picture(contest) is None
