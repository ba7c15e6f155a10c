"""Runs on meshes of devices: their batches, their flags, and that they come to the same."""

import gc
import json

import commands
import jax
import numpy as np
import pytest
import text_runs
from jax.sharding import NamedSharding, PartitionSpec as P
from small_language import write_places

import lora_jax as lj
from experiments import cli
from experiments.runs import generated_texts, run
from experiments.runs.interruption import Interrupted
from experiments.setup.devices import mesh_of
from experiments.setup.experiment import build
from lora_jax import data
from lora_jax.data.tokenised_task import LabelledTexts
from lora_jax.records import run_record
from lora_jax.sharding.mesh import ROWS

pytestmark = pytest.mark.usefixtures("standard_promotion")


# ---- batches -------------------------------------------------------------------------------------


def encoded(rows=11):
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(random.integers(2, 9, rows))])
    ids, types = (random.integers(0, 99, offsets[-1]).astype(np.int32) for _ in range(2))
    return data.Encoded(ids, types, offsets, np.arange(rows), pad_id=0, truncated=0)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)], ids=str)
@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_a_batch_is_that_of_one_device_cut_by_rows(sizes, count):
    mesh = lj.make_mesh(*sizes)
    rows = NamedSharding(mesh, P(ROWS))
    source, indices = encoded(), np.array([7, 2, 9, 4, 0, 3, 10, 1])[:count]
    wanted = data.collate(source, indices, 9, 8)
    given = dict.fromkeys(("task", "tokenizer", "examples_per_second", "shape"))
    texts = LabelledTexts(encoded={"train": source}, boundaries=(9,), **given)
    got = texts.batch("train", data.PlannedBatch(9, indices), 8, rows)
    assert got.keys() == wanted.keys()
    for name, array in got.items():
        assert array.sharding == rows and array.dtype == wanted[name].dtype
        whole = np.asarray(array)  # of which a part compiles nothing
        np.testing.assert_array_equal(whole[:count], wanted[name][:count], err_msg=name)
        assert array.shape == wanted[name].shape
    np.testing.assert_array_equal(got["weight"], np.arange(8) < count)


# ---- meshes --------------------------------------------------------------------------------------


def test_a_process_takes_all_devices_or_as_many_as_are_asked_for():
    assert mesh_of(None).devices.shape == (8, 1, 1)
    assert mesh_of((1, 2, 2)).devices.shape == (1, 2, 2)
    assert mesh_of((2, -1, 2)).devices.shape == (2, 2, 2)
    assert mesh_of((1, 1, 1)) is None


@pytest.mark.parametrize(
    "value, message",
    [
        ("1,x,1", "--mesh=1,x,1: expected whole numbers"),
        (
            "2,2",
            "--mesh=2,2: expected the sizes of data, fsdp, tensor, at most one -1, such as 2,2,1",
        ),
        ("2", "--mesh=2: expected the sizes of data, fsdp, tensor, at most one -1, such as 2,1,1"),
        ("-1,-1,1", "--mesh=-1,-1,1: expected the sizes of data, fsdp, tensor, at most one -1"),
        ("0,1,1", "--mesh=0,1,1: sizes must be at least 1, or -1 for what is left"),
        ("16,1,1", "--mesh=16,1,1 needs 16 devices; there are 8"),
        ("3,-1,1", "--mesh=3,-1,1 needs a multiple of 3 devices; there are 8"),
    ],
)
def test_what_is_wrong_with_a_mesh_is_said(value, message):
    with pytest.raises(ValueError) as caught:
        mesh_of(cli.integers("mesh", value.split(",")))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "mesh, message",
    [
        ("2,1,4", "--mesh=2,1,4 needs 8 devices; there are 4"),
        ("1,4,1", "config.train.batch_size 6 does not divide over 4 devices (data 1 x fsdp 4); use "
         "a multiple of 4, or --mesh=1,1,1 for one device"),
    ],
)  # fmt: skip
def test_the_command_says_so_in_one_line_and_writes_nothing(mesh, message, tmp_path):
    line = ["experiments.train", "--config=configs/quickstart.py:size=smoke"]
    line += [f"--workdir={tmp_path / 'run'}", f"--mesh={mesh}", "--config.train.batch_size=6"]
    done = commands.run(*line, **commands.with_devices(4))
    said = [line for line in done.stderr.splitlines() if not line.startswith("devices: 4 CPU ")]
    assert (done.returncode, said) == (1, [f"error: {message}"])
    assert not (tmp_path / "run").exists()


# ---- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_places(tmp_path_factory.mktemp("language"))


def config(places, method="lora", **changes):
    own = {"train__checkpoint_every": 1, "generate__samples": 0}
    return text_runs.config(places, method, **{**own, **changes})


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {each["step"]: each["loss"] for each in lines if "loss" in each}


def test_a_batch_that_a_mesh_does_not_divide_is_an_error_before_anything_is_written(
    places, tmp_path
):
    made = config(places, train__batch_size=6)
    with pytest.raises(
        ValueError,
        match=r"batch_size 6 does not divide over 4 groups of 2 devices "
        r"\(data 1 x fsdp 4 x tensor 2\); use a multiple of 4, ",
    ):
        run.run(made, tmp_path / "run", mesh=lj.make_mesh(1, 4, 2))
    assert not (tmp_path / "run").exists()
    made = config(places, train__batch_size=8, train__accumulate=4)
    with pytest.raises(
        ValueError, match=r"4 groups of 2 devices .* and 4 parts .*; use a multiple of 16"
    ):
        build(made, mesh=lj.make_mesh(2, 2, 2))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:left whole")
def test_a_run_comes_to_the_same_on_a_mesh_and_goes_on_on_others(places, tmp_path):
    """Stopped before its last steps, it goes on where there is one device, or other ones."""
    whole = run.run(config(places), tmp_path / "alone")
    stopped, settings = tmp_path / "stopped", config(places)
    four = jax.devices()[:4]
    interrupt_after(2, settings, stopped, lj.make_mesh(1, 2, 2, four))
    assert set(losses(stopped)) == {1, 2}
    assert run_record.read(stopped) is None
    interrupt_after(3, settings, stopped, None)
    assert set(losses(stopped)) == {1, 2, 3}
    record = run.run(settings, stopped, mesh=lj.make_mesh(2, 1, 2, four))
    assert record.status == "completed" and record.steps == whole.steps
    assert record.audit["batches"] == whole.audit["batches"] == 1
    assert record.config == whole.config
    assert record.parameters_trained == whole.parameters_trained
    assert record.weights_digest == whole.weights_digest
    assert losses(stopped) == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
    assert record.metrics_last == pytest.approx(whole.metrics_last, rel=1e-3)


def interrupt_after(step, settings, folder, mesh):
    """A run that a signal stops."""

    class Preempted:
        def __enter__(self):
            return lambda number: number == step

        def __exit__(self, *error):
            pass

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("experiments.runs.run.preemption", Preempted)
        run.run(settings, folder, mesh=mesh)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:left whole")
def test_texts_on_a_mesh_are_written_without_a_merged_model(places):
    """And are those of one device, whose model is merged: DoRA's, of weights stored in bits."""
    changes = {"variant__name": "dora", "generate__samples": 2, "generate__max_new_tokens": 6}
    settings = config(places, "qlora", **changes)
    written = []
    for mesh in (None, lj.make_mesh(1, 2, 2, jax.devices()[:4])):
        experiment = build(settings, mesh=mesh)
        prompts = list(experiment.texts.task.validation.prompts)[:3]
        changed = jax.tree.map(lambda leaf: leaf + 0.05, experiment.trainable)
        with pytest.MonkeyPatch.context() as patch:
            if mesh is not None:
                patch.setattr(lj.Adapted, "merge", None)
            written.append(generated_texts.write(experiment, changed, prompts))
    assert written[0] == written[1] and any(written[0])


@pytest.mark.filterwarnings("ignore:left whole")
def test_an_experiment_keeps_no_weights_beside_those_that_it_trains_with(places):
    """Dense ones of a model that is stored in fewer bits, or trained in full, are gone."""
    mesh = lj.make_mesh(1, 2, 2, jax.devices()[:4])
    for method in ("qlora", "full"):
        before = {id(each) for each in jax.live_arrays()}
        experiment = build(config(places, method), mesh=mesh)
        state = experiment.start(keep=False)
        gc.collect()
        new = [each for each in jax.live_arrays() if id(each) not in before]
        held = sum(leaf.nbytes for leaf in jax.tree.leaves((state, experiment.frozen)))
        assert sum(each.nbytes for each in new) <= held + 10_000
