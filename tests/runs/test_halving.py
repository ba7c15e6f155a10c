"""Successive halving: the rungs, their cost, and survivors against trials that trained alone."""

import contextlib
import itertools
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import small_model
from killed import Killed

from experiments.runs import run, training
from experiments.runs.folder_lock import alone
from experiments.runs.group_folder import GroupFolder
from experiments.runs.run_options import RunOptions
from experiments.runs.rungs import Rung, cost, decide, most_trials, plan
from lora_jax.records import run_record
from lora_jax.records.metrics_log import read_metrics
from lora_jax.training.loop_settings import Loop

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_each_rung_keeps_a_share_and_trains_as_much_longer():
    assert plan(9, 90, 3) == [Rung(9, 10), Rung(3, 30), Rung(1, 90)]
    assert plan(11, 40, 2) == [Rung(11, 5), Rung(5, 10), Rung(2, 20), Rung(1, 40)]
    assert cost(plan(9, 90, 3)) == 9 * 10 + 3 * 20 + 60
    assert plan(4, 5, 4) == [Rung(4, 1), Rung(1, 5)]


@pytest.mark.parametrize(
    ("trials", "steps", "said"),
    [(2, 90, "it needs 3 trials or more, not 2"), (27, 20, "27 trials need 27 steps or more")],
)
def test_too_few_trials_or_steps_are_refused(trials, steps, said):
    with pytest.raises(ValueError, match=said):
        plan(trials, steps, 3)


@pytest.mark.parametrize("factor", [1, 0, -2])
def test_a_factor_that_takes_none_out_is_refused(factor):
    with pytest.raises(ValueError, match=f"--halving={factor}: expected 2 or more"):
        plan(4, 100, factor)


def test_a_budget_has_the_most_trials_that_cost_no_more():
    costs = {trials: cost(plan(trials, 90, 3)) for trials in range(3, 243)}
    for budget in (149, 150, 210, 299):
        affordable = [trials for trials, each in costs.items() if each <= budget]
        assert most_trials(90, 3, budget) == max(affordable, default=0)


def test_the_best_go_on_and_no_score_never_does():
    scores = {0: 0.5, 1: None, 2: 0.9, 3: 0.5, 4: float("nan")}
    up = decide(Loop(9, mode="max"), 3, scores, 2)
    assert up.going_on == [0, 2]  # of equal scores the first
    assert [up.place(n) for n in (2, 0, 3)] == [1, 2, 3]
    assert up.scores[4] is None
    assert decide(Loop(9, mode="min"), 3, scores, 1).going_on == [0]
    assert decide(Loop(9), 3, scores, 5).going_on == [0, 2, 3]
    assert up.said(3, 0, "accuracy") == ("at rung 1, step 3: accuracy 0.5, place 3 of 5; 2 go on")


def without_time(record):
    """A record but for what no two runs have in common."""
    times = ("seconds", "seconds_total", "peak_memory_bytes", "tokenised_per_second")
    own = {*times, "metrics_check", "evaluations"}
    kept = {name: value for name, value in vars(record).items() if name not in own}
    return kept | {"scores": [(each["step"], each["score"]) for each in record.evaluations]}


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Four trials of six steps; of ranks 2 and 4, at other rates, one of which learns nothing."""
    smoke = small_model.smoke_runs(tmp_path_factory.mktemp("small"))
    few = {"targets": ("query/kernel",), "train__checkpoint_every": 1, "data__validation": 16}
    rates = (3e-2, 1e-9, 1e-2, 3e-3)
    return [
        smoke(optimizer__learning_rate=rate, variant__rank=2 + 2 * (n % 2), **few)
        for n, rate in enumerate(rates)
    ]


def folders(root):
    return [root / f"trial_{number}" for number in range(4)]


@pytest.fixture(scope="module")
def halved(configs, tmp_path_factory):
    where = folders(tmp_path_factory.mktemp("halved"))
    with jax.numpy_dtype_promotion("standard"):
        return where, run.run_together(configs, where, RunOptions("each", halving=2, audit=False))


def assert_same_adapter(here, there):
    ours, theirs = (
        safetensors.numpy.load_file(each / "adapter.safetensors") for each in (here, there)
    )
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_so_are_survivors_of_trials_that_step_at_once(configs, tmp_path):
    where = folders(tmp_path)
    records = run.run_together(configs, where, RunOptions("vmap", halving=2, audit=False))
    number = next(n for n, each in enumerate(records) if each.status == "completed")
    run.run(configs[number], tmp_path / "alone", audit=False)
    assert_same_adapter(where[number], tmp_path / "alone")


def test_survivors_are_what_they_are_alone_and_records_say_why_others_left(
    configs, halved, tmp_path
):
    where, records = halved
    assert sorted(each.status for each in records) == ["completed", *["stopped"] * 3]
    assert sorted(each.steps for each in records) == [2, 2, 3, 6]
    number = next(n for n, each in enumerate(records) if each.status == "completed")
    alone = run.run(configs[number], tmp_path / "alone", audit=False)
    assert_same_adapter(where[number], tmp_path / "alone")
    assert records[number].metrics_last == pytest.approx(alone.metrics_last, abs=1e-3)
    rows = [row["step"] for row in read_metrics(where[number] / "metrics.jsonl")]
    assert rows == [row["step"] for row in read_metrics(tmp_path / "alone" / "metrics.jsonl")]
    for record in records:
        assert run_record.validate(vars(record))
        reached = [(each["step"], each["trials"], each["kept"]) for each in record.rungs]
        assert reached == [(2, 4, 2), (3, 2, 1)][: len(reached)]
        last = record.rungs[-1]
        if record.status == "stopped":
            assert last["place"] > last["kept"]
            assert record.note.startswith(f"at rung {len(reached)}, step {record.steps}: ")
            assert record.metrics_last[record.metric] == last["score"]
        else:
            assert all(each["place"] <= each["kept"] for each in record.rungs)
    assert not list(where[0].parent.glob(".programs/*/"))


@pytest.mark.slow
@pytest.mark.parametrize("point", ["next", "rung", "decided", "record"])
def test_a_killed_search_ends_with_the_same_bits(configs, halved, tmp_path, monkeypatch, point):
    """Killed before a rung, after its decision, between its records, and on the way to the next."""
    there, records = halved
    where, count = folders(tmp_path), itertools.count(1)

    def dies(function, at):
        def call(*args, **kwargs):
            if next(count) == at:
                raise Killed
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patched, pytest.raises(Killed):
        if point == "rung":
            patched.setattr(training, "decide", dies(training.decide, 1))
        elif point == "decided":
            patched.setattr(training.Training, "_take_out", dies(training.Training._take_out, 1))
        elif point == "record":
            patched.setattr(run_record, "write", dies(run_record.write, 2))
        else:
            patched.setattr(training, "fit", dies(training.fit, 3))
        patched.setattr(run_record, "write", _no_failures(run_record.write))
        run.run_together(configs, where, RunOptions("each", halving=2, audit=False))
    again = run.run_together(configs, where, RunOptions("each", halving=2, audit=False))
    assert [without_time(each) for each in again] == [without_time(each) for each in records]
    number = next(n for n, each in enumerate(records) if each.status == "completed")
    mine, wanted = (
        safetensors.numpy.load_file(each[number] / "adapter.safetensors") for each in (where, there)
    )
    for name, array in wanted.items():
        np.testing.assert_array_equal(mine[name], array)


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("busy", "process .* is training there"),
        ("refused", "the disk is away"),
        ("ended", "it is (stopped|completed) already; begin anew in another --workdir"),
        ("forgotten", "an earlier process began without it"),
    ],
)
def test_a_halving_without_one_of_its_trials_does_not_begin(
    configs, halved, tmp_path, monkeypatch, why, said
):
    """Else its rungs would be those of fewer trials than were asked for."""
    where, build = folders(tmp_path), run.build
    with contextlib.ExitStack() as stack:
        if why == "busy":
            stack.enter_context(alone(where[1]))
        if why == "refused":

            def refuses(config, *args, **kwargs):
                if config == configs[1]:
                    raise OSError("the disk is away")
                return build(config, *args, **kwargs)

            monkeypatch.setattr(run, "build", refuses)
        if why == "ended":
            shutil.copytree(halved[0][1], where[1])
        if why == "forgotten":
            GroupFolder.of(configs, where).begin([0, 2, 3])
        monkeypatch.setattr(run, "train", pytest.fail)
        found = run.run_together(configs, where, RunOptions(halving=2, audit=False))
    line = f"a halving has all of its trials or does not begin, and trial_1 is missing: .*{said}"
    for number, each in enumerate(found):
        if (number, why) != (1, "ended"):
            assert re.match(line, str(each))


def test_one_trial_is_not_halved(configs, tmp_path):
    with pytest.raises(ValueError, match="it needs 2 trials or more, not 1"):
        run.run_together(configs[:1], folders(tmp_path)[:1], RunOptions(halving=2, audit=False))


def _no_failures(write):
    """A process that is killed leaves no records of failed trials."""

    def call(folder, record):
        if record.status != "failed":
            write(folder, record)

    return call
