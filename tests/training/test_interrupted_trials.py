"""Trials of one program end as they would have, though they are killed or others diverge."""

import dataclasses
import functools
import itertools
import math
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from killed import Killed
from small_trials import TRIALS, Trial, adam, assert_close, batches, build, built

from lora_jax.records import metrics_log
from lora_jax.training import checkpoint, loop
from lora_jax.training.loop_settings import Loop
from lora_jax.training.masking import narrow
from lora_jax.training.outcome import Outcome
from lora_jax.training.saved_trials import SavedTrials, without_optimizer

pytestmark = pytest.mark.usefixtures("standard_promotion")


def fit(
    folder,
    execution="each",
    chosen=TRIALS,
    killed_at=None,
    poison=(),
    keep_best=False,
    overflow=None,
    interrupted=None,
    progress=None,
    identity="these",
    asked=None,
):
    """20 steps of all trials, as `small_training` has them for one.

    A list `asked` gets what is evaluated, which then begins before the first step.
    """
    if chosen is TRIALS:
        run, states, made = built(execution)
        states = jax.tree.map(jnp.copy, states)  # what is started with is donated
    else:
        run, states, made = build(chosen, execution, optimizer=adam)

    def source(number):
        def start(step):
            for each, batch in enumerate(batches(chosen[number], step), step + 1):
                if each == killed_at:
                    raise Killed
                if (number, each) in poison:
                    batch["x"] = batch["x"] * np.nan
                yield batch

        return start

    def evaluate(number, trainable):
        if asked is not None:
            asked.append((number, outcomes[number].steps, total(trainable)))
        if (number, outcomes[number].steps) == overflow:
            return {"accuracy": 0.5, "eval_loss": math.inf}
        own = narrow(trainable, made[number].trainable)
        merged = made[number].adapted.merge(own, made[number].frozen)
        return {"accuracy": float(jnp.sin(jnp.abs(merged["out"]).sum() * 3))}

    outcomes = [Outcome() for _ in chosen]
    folders = [folder / str(number) for number in range(len(chosen))]
    logs = [metrics_log.Metrics(each) for each in folders]
    settings = Loop(20, 3, 7, 5, evaluate_first=asked is not None)
    with checkpoint.Checkpoints(folder / "checkpoints") as checkpoints:
        saved = SavedTrials(checkpoints, {"trials": identity}, keep_best)
        states = loop.fit(
            run,
            states,
            [
                loop.TrialRun(settings, source(number), log, outcome)
                for number, (log, outcome) in enumerate(zip(logs, outcomes, strict=True))
            ],
            evaluate=evaluate,
            saved=saved,
            progress=progress,
            interrupted=interrupted,
        )
        ended = saved.best(states, outcomes)
    own = [narrow(e.trainable, m.trainable) for e, m in zip(ended, made, strict=True)]
    return own, outcomes, [metrics_log.read_metrics(each / "metrics.jsonl") for each in folders]


def total(trainable):
    return float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(trainable)))


def without_seconds(outcome):
    rows = [{**row, "seconds": 0} for row in outcome.evaluations]
    return dataclasses.replace(outcome, seconds=0, evaluations=rows)


def assert_same_end(ours, undisturbed):
    """Bits, outcomes and lines of the metrics are those of trials that nothing disturbed."""
    assert_close(ours[0], undisturbed[0], rtol=0)
    assert [*map(without_seconds, ours[1])] == [*map(without_seconds, undisturbed[1])]
    assert ours[2] == undisturbed[2]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Runs that nothing disturbs, with their folder; made once for each execution."""

    @functools.cache
    def run(execution):
        folder = tmp_path_factory.mktemp(execution)
        return folder, fit(folder, execution, keep_best=True)

    return run


@pytest.mark.parametrize(
    "execution, killed_at", [("each", 1), ("vmap", 6), ("each", 8), ("vmap", 20)]
)
def test_interrupted_trials_end_with_the_same_bits(tmp_path, execution, killed_at, straight):
    _, undisturbed = straight(execution)
    with pytest.raises(Killed):
        fit(tmp_path, execution, killed_at=killed_at, keep_best=True)
    assert_same_end(fit(tmp_path, execution, keep_best=True), undisturbed)


@pytest.mark.parametrize("execution", ["each", "vmap"])
def test_trials_that_are_asked_to_end_save_that_step(tmp_path, execution, straight):
    """And end with the same bits when they continue."""
    for stop in (1, 7, 20):
        _, outcomes, rows = fit(
            tmp_path, execution, keep_best=True, interrupted=lambda step, stop=stop: step == stop
        )
        assert [(each.interrupted, each.steps) for each in outcomes] == [(True, stop)] * 3
        with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
            assert saved.steps()[-1] == stop
        due = {step for step in range(1, stop + 1) if step % 3 == 0 or step % 7 == 0}
        assert [{row["step"] for row in each} for each in rows] == [due | {20} & {stop}] * 3
    assert_same_end(fit(tmp_path, execution, keep_best=True), straight(execution)[1])


def test_trials_continue_from_the_layout_of_checkpoints(tmp_path, straight):
    """Here by hand; one trial's evaluation of step 3 stays the best."""
    run, states, made = built("each")
    population = run.start(jax.tree.map(jnp.copy, states))
    sources = [batches(trial) for trial in TRIALS]
    best = population
    for step in range(1, 6):
        population, _ = run.step(population, [next(source) for source in sources])
        best = jax.tree.map(jnp.copy, population) if step == 3 else best
    began = {"steps": 5, "seconds": 1.5, "metrics_last": {}, "metrics_best": {}, "best_step": None}
    began |= {"target_step": None, "target_seconds": None, "diverged": False, "metrics_first": {}}
    old = began | {"metrics_best": {"accuracy": 2.0}, "best_step": 3}
    new = began | {"interrupted": False, "audit": None, "evaluations": []}
    best = [*map(without_optimizer, best)]
    now, then = (jax.tree.map(lambda *x: jnp.stack(x), *each) for each in (population, best))
    wanted = narrow(jax.tree.map(np.array, best[0].trainable), made[0].trainable)
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
        meta = {"identity": {"trials": "these"}, "outcomes": [old, new, new]}
        saved.save(5, {"now": now, "best": then}, meta)
    ended, outcomes, rows = fit(tmp_path, keep_best=True)
    _, (trainables, others, all_rows) = straight("each")
    assert_close(ended[0], wanted, rtol=0)
    assert (outcomes[0].best_step, outcomes[0].evaluations) == (3, None)
    assert_close(ended[1:], trainables[1:], rtol=0)
    lines = [dataclasses.replace(each, metrics_checksum=None) for each in (*outcomes, *others)]
    assert [*map(without_seconds, lines[1:3])] == [*map(without_seconds, lines[4:])]
    assert all(each.seconds > 1.5 for each in outcomes)
    assert rows == [[row for row in each if row["step"] > 5] for each in all_rows]


@pytest.mark.parametrize("execution", ["each", "vmap"])
def test_a_trial_that_diverges_ends_and_the_others_go_on(tmp_path, execution, straight):
    said = []
    _, outcomes, rows = fit(
        tmp_path, execution, poison={(1, 11)}, progress=lambda *news: said.append(news)
    )
    assert [outcome.diverged for outcome in outcomes] == [False, True, False]
    assert [outcome.steps for outcome in outcomes] == [20, 12, 20]
    assert rows[1][-1]["step"] == 12 and math.isnan(rows[1][-1]["loss"])
    _, (_, _, wanted) = straight(execution)
    for number in (0, 2):
        assert rows[number] == wanted[number]
    losses = [{row["step"]: row.get("loss") for row in each} for each in rows]
    assert [step for step, _, _ in said] == [3, 5, 6, 7, 9, 10, 12, 14, 15, 18, 20]
    for step, loss, examples in said:
        going = (0, 2) if step >= 12 else (0, 1, 2)
        if step % 3 == 0:
            np.testing.assert_allclose(loss, np.mean([losses[n][step] for n in going]))
        rows_of = [8 - each % 3 for each in range(step)]
        assert examples == 3 * sum(rows_of[:12]) + 2 * sum(rows_of[12:])


def test_when_all_trials_have_diverged_nothing_more_is_saved(tmp_path):
    for _ in range(2):  # again, from the checkpoints, to the same end
        _, outcomes, rows = fit(tmp_path, poison={(0, 11), (1, 4), (2, 11)})
        assert [(each.diverged, each.steps) for each in outcomes] == [
            (True, 12),
            (True, 5),
            (True, 12),
        ]
        assert [each[-1]["step"] for each in rows] == [12, 5, 12]
        with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
            assert saved.steps() == [7, 10]


def test_a_score_that_is_not_finite_outlives_a_kill(tmp_path):
    undisturbed = fit(tmp_path / "straight", overflow=(1, 7))
    assert undisturbed[1][1].diverged and undisturbed[1][1].steps == 7
    with pytest.raises(Killed):
        fit(tmp_path / "killed", overflow=(1, 7), killed_at=13)
    again = fit(tmp_path / "killed", overflow=(1, 7))
    assert [*map(without_seconds, again[1])] == [*map(without_seconds, undisturbed[1])]
    assert again[1][1].metrics_last == {"accuracy": 0.5, "eval_loss": math.inf}


def test_the_best_evaluations_state_is_returned(tmp_path, straight):
    last, outcomes, rows = fit(tmp_path)
    _, (best, _, _) = straight("each")
    for number, outcome in enumerate(outcomes):
        scores = {row["step"]: row["accuracy"] for row in rows[number] if "accuracy" in row}
        assert outcome.best_step == max(scores, key=scores.__getitem__)
        same = all(
            np.array_equal(ours, theirs)
            for ours, theirs in zip(
                jax.tree.leaves(best[number]), jax.tree.leaves(last[number]), strict=True
            )
        )
        assert same == (outcome.best_step == 20)
    assert len({outcome.best_step for outcome in outcomes}) > 1


def test_each_trial_is_evaluated_by_itself_and_has_a_share_of_the_seconds(tmp_path, monkeypatch):
    """By a clock that is one second on whenever it is read, as at each line and each save."""
    clock = types.SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(loop, "time", clock)
    _, outcomes, _ = fit(tmp_path, asked=(asked := []))
    starts = enumerate(map(total, (each.trainable for each in built("each")[1])))
    assert asked[:3] == [(number, 0, weights) for number, weights in starts]
    assert [each[:2] for each in asked[3:]] == [(n, step) for step in (7, 14, 20) for n in range(3)]
    assert len({weights for *_, weights in asked}) == len(asked)
    events = {step for step in range(1, 21) if not (step % 3 and step % 5 and step % 7)}
    assert [each.seconds for each in outcomes] == pytest.approx([len(events) / 3] * 3)


def test_checkpoints_of_other_trials_are_refused(tmp_path, straight):
    folder, _ = straight("each")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="belongs to a run with other trials; name another folder"):
        fit(tmp_path, keep_best=True, identity="those")
    with pytest.raises(ValueError, match="leaf"):
        fit(tmp_path, chosen=(*TRIALS, Trial(seed=9, settings=TRIALS[0].settings)))
