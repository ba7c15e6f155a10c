"""How runs end, well and badly: what their records, checkpoints and last lines say."""

import io
import os
import signal
from pathlib import Path

import fake_records
import jax
import pytest
import small_model
from rich.console import Console

from experiments.analysis import unfinished_runs
from experiments.runs import adapter_as_run, quickstart_table, run
from experiments.runs.finished_run import is_completed
from experiments.runs.group import Group
from experiments.setup import classification, experiment
from lora_jax import data
from lora_jax.records import run_record
from lora_jax.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    made = small_model.smoke_runs(tmp_path_factory.mktemp("small"))
    few = {"targets": ("query/kernel",)}  # which takes less to compile
    return lambda arg="", **changes: made(arg, **few | changes)


@pytest.fixture(scope="module")
def failed(smoke, tmp_path_factory):
    """The folder of a run that failed at its evaluation, with a checkpoint of half its steps."""
    workdir = tmp_path_factory.mktemp("failed") / "run"

    def broken(self, number, trainable):
        raise RuntimeError("the disk is full")

    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(Group, "evaluate", broken)
        with pytest.raises(RuntimeError):
            run.run(smoke(), workdir)
    return workdir


def test_a_run_that_fails_says_so_in_its_record(failed):
    record = run_record.read(failed)
    assert record is not None
    assert (record.status, record.note) == ("failed", "RuntimeError: the disk is full")
    assert record.steps == 8
    assert record.seconds > 0
    assert not is_completed(failed)


@pytest.mark.parametrize(
    ("place", "name", "value", "said"),
    [
        (data.Task, "digest", lambda self: "of other data", "data"),
        (classification, "boundaries", lambda *_: (20, 24), "lengths of texts"),
        (classification.weight_files, "weights_digest", lambda _: "of other weights", "weights"),
    ],
)
def test_a_run_does_not_go_on_with_other_data_or_weights(
    failed, smoke, monkeypatch, place, name, value, said
):
    monkeypatch.setattr(place, name, value)
    with (
        pytest.raises(ValueError, match=f"belongs to a run with other {said}; name"),
        jax.numpy_dtype_promotion("standard"),
    ):
        run.run(smoke(), failed)


def test_a_run_that_is_asked_to_end_has_no_record_and_goes_on(smoke, tmp_path, monkeypatch, capfd):
    config = smoke(data__train=24)
    true_batches = experiment.Experiment.batches

    def batches(self, step):
        for number, batch in enumerate(true_batches(self, step), step + 1):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(experiment.Experiment, "batches", batches)
        with pytest.raises(SystemExit) as caught:
            run.run(config, tmp_path / "run")
    assert caught.value.code == 75
    assert "interrupted: step 2 is saved; the same command goes on\n" in capfd.readouterr().out
    assert run_record.read(tmp_path / "run") is None
    (left,) = unfinished_runs.find(tmp_path)
    assert left.status == "unfinished"
    with Checkpoints(tmp_path / "run" / "checkpoints") as saved:
        assert saved.steps() == [2]
    with jax.numpy_dtype_promotion("standard"):
        record = run.run(config, tmp_path / "run")
    assert (record.status, record.steps) == ("completed", 3)
    assert is_completed(tmp_path / "run")


def test_a_run_whose_last_step_diverges(smoke, tmp_path):
    config = smoke(data__train=8, optimizer__learning_rate=1e20)
    for _ in range(2):
        with jax.numpy_dtype_promotion("standard"):
            run.run(config, tmp_path / "run")
        record = run_record.read(tmp_path / "run")
        assert record is not None
        assert (record.status, record.steps, record.metrics_best) == ("diverged", 1, {})
        assert record.metrics_last["eval_loss"] is None
        assert record.note == "loss, gradient, weights or score not finite at step 1"
        assert not (tmp_path / "run" / "adapter.safetensors").exists()
        with Checkpoints(tmp_path / "run" / "checkpoints") as saved:
            assert saved.steps() == []


def test_the_scores_said_are_of_the_adapter_that_was_saved(tmp_path):
    def said(select="last", **fields):
        fields = {"steps": 9, "best_step": 6, "metrics_last": {"accuracy": 0.5}, **fields}
        record = fake_records.write(
            tmp_path / str(len(list(tmp_path.iterdir()))),
            "quickstart",
            "size=smoke",
            {"accuracy": 0.75},
            changes={"train.select": select},
            **fields,
        )
        said = run.summarise(record)
        rate = said.pop() if record.tokenised_per_second else None
        assert rate == (record.tokenised_per_second and "texts tokenised at 1,234 examples/s")
        of = "trained" if fields["steps"] else "in the adapter"
        assert said.pop() == f"770 of 22,713,986 parameters {of}"
        return said

    assert said() == ["completed after 9 steps: accuracy 0.5"]
    assert said(steps=0, best_step=0) == ["not trained here: accuracy 0.5"]
    assert said(tokenised_per_second=1234.4) == ["completed after 9 steps: accuracy 0.5"]
    assert said("best") == ["completed after 9 steps, saved as of step 6, the best: accuracy 0.75"]
    assert said(note="of step 6 instead")[1:] == ["of step 6 instead"]
    assert said(status="diverged", note="at step 9") == ["diverged after 9 steps", "at step 9"]


def test_an_adapter_whose_scores_are_not_finite_is_an_error(tmp_path, capsys):
    fields = {"steps": 0, "best_step": 0, "status": "diverged", "note": "combined by sum"}
    folder = tmp_path / "made"
    record = fake_records.write(folder, "quickstart", "size=smoke", {"accuracy": 0.5}, **fields)
    with pytest.raises(ValueError, match=f"scores are not finite, .* says diverged: {folder}$"):
        adapter_as_run.say(record, folder)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["diverged", "combined by sum"]
    assert printed[-1] == f"record and adapter: {folder}"


def test_only_adapters_of_the_final_budget_may_be_the_best(smoke):
    built = experiment.build(smoke("variant=adalora"))
    assert built.loop.best_from == 4  # of 8 steps, the second half
    built = experiment.build(smoke("variant=adalora", variant__t_final=1))
    assert built.loop.best_from == 7


def test_the_quickstarts_table_fits_and_is_the_readmes():
    labels = (quickstart_table.HEAD, quickstart_table.LORA, quickstart_table.MERGED)
    rows = [(label, "100.0%", "22,713,216", "1234 s", "12.3 s") for label in labels]
    console = Console(width=80, file=io.StringIO())
    console.print(quickstart_table.table(rows))
    assert len(console.file.getvalue().splitlines()) == 3 + len(rows) + 1
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("<!-- quickstart -->")[2].partition("<!-- /quickstart -->")[0]
    header, _, *body = [
        line.strip("| ").split(" | ") for line in shown.split("\n\n")[0].split("\n") if line
    ]
    assert header == list(quickstart_table.COLUMNS)
    assert [row[0] for row in body] == list(labels)
