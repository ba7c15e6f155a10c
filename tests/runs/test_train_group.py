"""A group of trials leaves the files, records, data and scores that each of them leaves alone."""

import jax
import numpy as np
import pytest
from group_trials import QUERY, assert_alike, assert_scored, folders, without_time
from killed import Killed

from experiments.runs import predictions, run
from experiments.runs.group import Group, with_batches_for
from experiments.runs.run_options import RunOptions
from experiments.setup.experiment import build
from experiments.sweeps.grouping import groups
from lora_jax.data import tokenised_task
from lora_jax.records import run_record
from lora_jax.training.trial_program import EXECUTIONS

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def alone(chosen, tmp_path_factory):
    """The folders of the last two of `chosen`, each trained by itself."""
    where = folders(tmp_path_factory.mktemp("alone"), 3)
    with jax.numpy_dtype_promotion("standard"):
        for settings, folder in zip(chosen[1:], where[1:], strict=True):
            run.run(settings, folder)
    return where


@pytest.fixture(scope="module")
def one_by_one(chosen, tmp_path_factory):
    """The folders of `chosen` as one group, which step one after the other."""
    where = folders(tmp_path_factory.mktemp("each"), 3)
    with jax.numpy_dtype_promotion("standard"):
        assert run.run_together(chosen, where, RunOptions("each")) == [*map(run_record.read, where)]
    return where


@pytest.mark.slow
def test_what_trials_leave_is_what_they_leave_alone(one_by_one, alone):
    for number in (1, 2):
        assert_alike(one_by_one[number], alone[number])
    assert_scored(one_by_one[0])
    assert not list((one_by_one[0].parent / ".programs").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["vmap", "map"])
def test_so_do_trials_that_step_at_once(chosen, alone, tmp_path, execution):
    where = folders(tmp_path, 3)
    assert run.run_together(chosen, where, RunOptions(execution)) == [*map(run_record.read, where)]
    for number in (1, 2):
        assert_alike(where[number], alone[number])
    assert_scored(where[0])
    assert not list((tmp_path / ".programs").iterdir())


@pytest.mark.slow
def test_a_group_killed_again_and_again_is_the_group_that_was_not(
    chosen, one_by_one, tmp_path, monkeypatch
):
    """Before its first checkpoint, amid its second evaluation, and among its records."""
    where = folders(tmp_path, 3)

    def killed(place, name, call):
        true, calls = getattr(place, name), iter(range(1, 1000))

        def dies(*arguments):
            if next(calls) == call:
                raise Killed
            return true(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(place, name, dies)
            with pytest.raises(Killed):
                run.run_together(chosen, where, RunOptions("each"))
        return [run_record.read(folder) for folder in where]

    assert killed(Group, "evaluate", 2) == [None] * 3
    assert killed(Group, "evaluate", 5) == [None] * 3
    before = killed(run_record, "write", 2)
    assert [record is not None for record in before] == [True, False, False]
    with monkeypatch.context() as patch:
        patch.setattr(Group, "evaluate", None)  # nothing is trained again
        after = run.run_together(chosen, where, RunOptions("each"))
    assert after[0] == before[0]
    assert after == [run_record.read(folder) for folder in where]
    for one, other in zip(where, one_by_one, strict=True):
        assert without_time(run_record.read(one)) == without_time(run_record.read(other))
        for name in ("metrics.jsonl", "adapter.safetensors"):
            assert (one / name).read_bytes() == (other / name).read_bytes()


def test_trials_that_draw_other_examples_have_the_batches_that_they_have_alone(config_of):
    """Where all step at once, at the length of the longest of them."""
    many = {"data__train": 16, "data__max_length": 64, "data__buckets": 6}
    drawn = [build(config_of(seed=each, data__draw=each, **many)) for each in range(3)]
    alone = [each.first_epoch() for each in drawn]
    own = [[batch.padded_length for batch in epoch] for epoch in alone]
    longest = [max(lengths) for lengths in zip(*own, strict=True)]
    assert own != [longest] * 3
    for execution in EXECUTIONS:
        for number, each in enumerate(with_batches_for(execution, drawn)):
            epoch = each.first_epoch()
            for batch, same in zip(epoch, alone[number], strict=True):
                np.testing.assert_array_equal(batch.indices, same.indices)
            expected = own[number] if execution == "each" else longest
            assert [batch.padded_length for batch in epoch] == expected


KINDS = (
    *QUERY,
    ("key/kernel", {"name": "adalora"}),
    ("output/kernel", {"name": "dora"}),
    ("up/kernel", {"name": "vera"}),
    ("down/kernel", {"name": "full"}),
)


@pytest.mark.slow
def test_every_kind_of_variant(config_of, tmp_path):
    """All in one model, two of them with ranks of their own; the second trial is widened."""
    other = {"optimizer__learning_rate": 2e-3, "optimizer__weight_decay": 0.1}
    chosen = [
        config_of(targets=KINDS, variant__rank=8),
        config_of(targets=KINDS, variant__rank=2, seed=3, **other),
    ]
    where = folders(tmp_path, 2)
    assert run.run_together(chosen, where, RunOptions("vmap")) == [*map(run_record.read, where)]
    run.run(chosen[1], tmp_path / "alone")
    assert_alike(where[1], tmp_path / "alone")


@pytest.mark.slow
def test_a_frozen_head_that_each_trial_draws_is_its_own(config_of, tmp_path):
    """Over quantised weights; the checkpoint has no head for this pooling: nothing trains it."""
    changes = {"model__pool": "cls", "also_train": (), "targets": ("query/kernel",)}
    chosen = [config_of(quantize__storage="nf4", seed=seed, **changes) for seed in range(2)]
    assert groups(chosen) == [[0, 1]]
    where = folders(tmp_path, 2)
    assert run.run_together(chosen, where, RunOptions("vmap")) == [*map(run_record.read, where)]
    run.run(chosen[1], tmp_path / "alone")
    assert_alike(where[1], tmp_path / "alone")


@pytest.mark.slow
def test_predictions_are_what_was_scored(config_of, tmp_path, monkeypatch):
    """They are not computed again, and their bits do not depend on who shares the program."""
    many = {"data__train": 8, "data__max_length": 64, "data__buckets": 3}
    many["data__unlabelled"] = False
    calls, plan = [], tokenised_task.eval_plan

    def noted(each, batch_size, boundaries):
        calls.append(boundaries)
        return plan(each, batch_size, boundaries)

    monkeypatch.setattr(tokenised_task, "eval_plan", noted)
    configs = [config_of(seed=each, data__draw=each, **many) for each in range(3)]
    alone = {build(each).texts.boundaries for each in configs}
    three, two = folders(tmp_path / "three", 3), folders(tmp_path / "two", 2)
    records = run.run_together(configs, three, RunOptions("each", audit=False))
    assert [each.status for each in records] == ["completed"] * 3
    assert len(calls) == sum(len(each.evaluations) for each in records)
    assert set(calls) == alone and len(alone) > 1
    run.run_together(configs[:0:-1], two, RunOptions("each", audit=False))
    for one, other in zip(two, three[:0:-1], strict=True):
        outputs = [predictions.read(each)["validation"].outputs for each in (one, other)]
        np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("storage", ["none", "nf4"])
def test_there_is_one_copy_of_the_base(tiny, tmp_path, storage, monkeypatch):
    made = {}

    def train(experiments, *_):
        made.update(experiments)
        return dict.fromkeys(experiments, ValueError("not trained"))

    monkeypatch.setattr(run, "train", train)
    run.run_together(tiny(quantize__storage=storage), folders(tmp_path, 3))
    first, *others = (jax.tree.leaves(made[number].frozen.base) for number in range(3))
    assert len(first) > 10
    for leaves in others:
        assert all(mine is theirs for mine, theirs in zip(leaves, first, strict=True))


def test_the_chosen_execution_is_kept(tiny, tmp_path):
    found = run.run_together(tiny(2), folders(tmp_path, 2))
    assert [record.status for record in found] == ["completed"] * 2
    again = run.run_together(tiny(2), folders(tmp_path, 2))
    assert again == found
