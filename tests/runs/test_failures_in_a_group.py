"""A trial that fails in a group leaves the other trials to be trained, at once or later."""

import pytest
from group_trials import assert_scored, folders
from killed import Killed

from experiments.runs import run
from experiments.runs.group import Group
from experiments.runs.run_options import RunOptions
from lora_jax.files.json_text import plain
from lora_jax.files.tree_file import load_tree
from lora_jax.records import run_record
from lora_jax.records.metrics_log import read_metrics

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_trials_that_cannot_be_trained_do_not_stop_the_rest(tiny, tmp_path):
    """One of a rank that cannot be, one whose record is damaged."""
    chosen, where = tiny(4), folders(tmp_path, 4)
    chosen[0] = tiny(4, variant__rank=999, variant__initialization="pissa")[0]
    chosen[3] = tiny(4, variant__alpha=3.0)[3]
    run_record.claim(where[2], chosen[2].plain)
    (where[2] / "record.json").write_text("{", encoding="utf-8")
    found = run.run_together(chosen, where, RunOptions("each"))
    assert "takes rank = 999 directions" in str(found[0])
    assert "trial_2" in str(found[2]) and isinstance(found[2], ValueError)
    for number in (1, 3):  # each has its own files
        assert found[number].status == "completed"
        assert_scored(where[number])
        _, meta = load_tree(where[number] / "adapter.safetensors")
        assert meta["config"] == plain(chosen[number].plain)
        rows = [row for row in read_metrics(where[number] / "metrics.jsonl") if "accuracy" in row]
        assert [row["step"] for row in rows] == [e["step"] for e in found[number].evaluations]
        assert rows[-1]["eval_loss"] == found[number].metrics_last["eval_loss"]


@pytest.mark.slow
def test_a_trial_that_could_not_be_made_for_once_is_made_up_for(tiny, tmp_path, monkeypatch):
    """The first process trains without it, and is killed; the second one trains all."""
    chosen, where = tiny(4), folders(tmp_path, 4)
    build, evaluate = run.build, Group.evaluate
    calls = iter(range(1, 1000))

    def failing(config, *more, **named):
        if config in chosen[1::2]:
            raise RuntimeError("no such device")
        return build(config, *more, **named)

    def killed(self, number, trainable):
        if next(calls) == 3:
            raise Killed
        return evaluate(self, number, trainable)

    with monkeypatch.context() as patch:
        patch.setattr(run, "build", failing)
        patch.setattr(Group, "evaluate", killed)
        with pytest.raises(Killed):
            run.run_together(chosen, where, RunOptions("each"))
    found = run.run_together(chosen, where, RunOptions("each"))
    assert [record.status for record in found] == ["completed"] * 4
    assert [record.config["seed"] for record in found] == [0, 1, 2, 3]
    assert not list((tmp_path / ".programs").iterdir())


@pytest.mark.slow
def test_checkpoints_outlive_a_trial_that_cannot_be_made_for_once(tiny, tmp_path, monkeypatch):
    """They are of all trials: nothing goes on without one, and nothing of them is lost."""
    chosen, where = tiny(), folders(tmp_path, 3)
    build, evaluate, calls = run.build, Group.evaluate, []

    def killed(self, number, trainable):
        calls.append(number)
        if len(calls) == 4:
            raise Killed
        return evaluate(self, number, trainable)

    def failing(config, *more, **named):
        if config == chosen[1]:
            raise OSError("the disk is away")
        return build(config, *more, **named)

    monkeypatch.setattr(Group, "evaluate", killed)
    with pytest.raises(Killed):
        run.run_together(chosen, where, RunOptions("each"))
    with monkeypatch.context() as patch:
        patch.setattr(run, "build", failing)
        found = run.run_together(chosen, where, RunOptions("each"))
    assert str(found[1]) == "the disk is away"
    for number in (0, 2):
        assert "trial_1 cannot be made now: the disk is away" in str(found[number])
    found = run.run_together(chosen, where, RunOptions("each"))
    assert [record.status for record in found] == ["completed"] * 3
    assert len(calls) == 4 + 3  # the first of two evaluations was not made again


@pytest.mark.slow
def test_a_trial_that_diverges_is_recorded(tiny, tmp_path):
    """Of three that step at once, with batches of two lengths."""
    lengths = {"data__max_length": 48, "data__buckets": 2}
    chosen = tiny(**lengths)
    chosen[1] = tiny(**lengths, optimizer__learning_rate=1e30, optimizer__clip=1e30)[1]
    found = run.run_together(chosen, folders(tmp_path, 3), RunOptions("vmap"))
    assert [record.status for record in found] == ["completed", "diverged", "completed"]
    assert "not finite" in found[1].note
    assert not (tmp_path / "trial_1" / "adapter.safetensors").exists()
