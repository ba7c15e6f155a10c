"""What a run saves, scores and reports is of the evaluation that its config chooses."""

import jax
import numpy as np
import pytest
from group_trials import folders

from experiments.runs import predictions, run
from experiments.runs.group import Group
from experiments.runs.run_options import RunOptions
from experiments.setup.experiment import build
from lora_jax.adapters.adapter_file import load_adapter
from lora_jax.data.metrics import label_metrics
from lora_jax.records.metrics_log import read_metrics
from lora_jax.training.masking import narrow

pytestmark = pytest.mark.usefixtures("standard_promotion")
SCORES = (0.5, 0.9, 0.1, 0.6), (0.4, 0.2, 0.8, 0.3)
"""Of two trials at each step: the highest, the lowest and the last are at three of them."""


@pytest.mark.parametrize(
    ("trials", "halving", "select", "better"),
    [
        (1, 0, "best", min),
        (2, 0, "last", max),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                (1, 0, "best", max),
                (1, 0, "last", max),
                (2, 0, "best", min),
                (2, 2, "best", min),
            )
        ),
    ],
)
def test_the_saved_state_is_that_of_the_chosen_evaluation(
    config_of, tmp_path, monkeypatch, trials, halving, select, better
):
    states = {0: [], 1: []}

    def planted(true):
        def evaluate(group, number, trainable):
            mine = group.experiments[number]
            known = states[mine.config.seed]
            known.append(jax.tree.map(np.array, narrow(trainable, mine.trainable)))
            score = SCORES[mine.config.seed][(len(known) - 1) % 4]
            return {**true(group, number, trainable), "accuracy": score}

        return evaluate

    monkeypatch.setattr(Group, "evaluate", planted(Group.evaluate))
    if better is min:
        monkeypatch.setattr(label_metrics, "LOWER_IS_BETTER", ("accuracy",))
    few = {"train__select": select, "train__evaluations": 4, "targets": ("down/kernel",)}
    few["optimizer__learning_rate"] = 3e-2  # so that a scale matters soon
    own = {"variant__rank": 3, "variant__alpha": 40.0} if trials > 1 else {}
    configs = [config_of(seed=0, **few), config_of(seed=1, **few, **own)][:trials]
    where = folders(tmp_path, trials)
    how = RunOptions("each", audit=False, halving=halving)
    records = run.run_together(configs, where, how)
    for number, (config, record, folder) in enumerate(zip(configs, records, where, strict=True)):
        if record.status == "stopped":  # of two, the first one, which is worse at step 2
            assert (number, record.steps, record.rungs[0]["score"]) == (0, 2, 0.9)
            continue
        scores = SCORES[number]
        best = better(scores)
        assert (record.best_step, record.metrics_best["accuracy"]) == (1 + scores.index(best), best)
        assert (record.steps, record.metrics_last["accuracy"]) == (4, scores[-1])
        chosen = best if select == "best" else scores[-1]
        assert f": accuracy {chosen:g}" in run.summarise(record)[0]

        mine = build(config)
        trainable = load_adapter(folder, mine.trainable, mine.frozen)[0]
        saved = jax.tree.leaves(states[number][scores.index(chosen)])
        for got, wanted in zip(jax.tree.leaves(trainable), saved, strict=True):
            np.testing.assert_array_equal(got, wanted)
        expected = mine.predictions(mine.adapted_call(trainable), "validation")["validation"]
        kept = predictions.read(folder)["validation"].outputs
        np.testing.assert_allclose(kept, expected, rtol=1e-5, atol=1e-6)
        others = {name: value for name, value in record.metrics_last.items() if name != "accuracy"}
        again = mine.texts.score({"validation": kept})
        own = record.metrics_best if select == "best" else record.metrics_last
        assert {name: own[name] for name in others} == pytest.approx({n: again[n] for n in others})
    if halving:  # the second one goes on by itself, as it would have alone
        run.run(configs[1], tmp_path / "alone", audit=False)
        rows = [read_metrics(each / "metrics.jsonl") for each in (where[1], tmp_path / "alone")]
        losses = [[row["loss"] for row in each if "loss" in row] for each in rows]
        np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("trials", [1, 2])
def test_averages_are_scored_and_saved_in_place_of_the_weights(
    config_of, tmp_path, monkeypatch, trials
):
    """Those of the weights that the same run has without them."""
    states = {}

    def noted(true):
        def evaluate(group, number, trainable):
            mine = group.experiments[number]
            key = mine.config.seed, mine.config.train.ema
            leaves = jax.tree.leaves(narrow(trainable, mine.trainable))
            states.setdefault(key, []).append([np.array(leaf) for leaf in leaves])
            return true(group, number, trainable)

        return evaluate

    monkeypatch.setattr(Group, "evaluate", noted(Group.evaluate))
    few = {"train__evaluations": 4, "targets": ("query/kernel",), "variant__rank": 2}
    seeds = range(3, 3 + trials)
    for ema in (0.6, None):
        configs = [config_of(seed=seed, train__ema=ema, **few) for seed in seeds]
        where = folders(tmp_path / str(ema), trials)
        run.run_together(configs, where, RunOptions("each", audit=False))
    for seed, folder in zip(seeds, folders(tmp_path / "0.6", trials), strict=True):
        shares = 0.6 ** np.arange(3, -1, -1)
        weights = zip(*states[seed, None], strict=True)
        wanted = [np.tensordot(shares / shares.sum(), each, 1) for each in weights]
        mine = build(config_of(seed=seed, **few))
        saved = jax.tree.leaves(load_adapter(folder, mine.trainable, mine.frozen)[0])
        for got, scored, average in zip(saved, states[seed, 0.6][-1], wanted, strict=True):
            np.testing.assert_array_equal(got, scored)
            np.testing.assert_allclose(got, average, rtol=1e-4, atol=1e-6)
