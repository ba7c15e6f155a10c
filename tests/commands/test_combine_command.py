"""Combine runs by the command, into a folder like that of a run of LoRA; and compare them."""

import dataclasses
import json
import shutil

import commands
import jax
import numpy as np
import pytest
import small_model

import lora_jax as lj
from experiments.imports.combined_run import open_runs, params_before
from experiments.runs import artifacts
from experiments.runs.finished_run import open_run, read_record
from experiments.setup.config import parse
from experiments.setup.experiment import build
from lora_jax.contract.clause import by_numpy
from lora_jax.contract.toys import noisy
from lora_jax.partition import flatten
from lora_jax.records import run_record
from lora_jax.training.outcome import Outcome

pytestmark = pytest.mark.slow
RUNS = {
    "lora": {"variant__rank": 2},
    "dora": {"variant__name": "dora", "variant__rank": 3, "seed": 1},
    "nf4": {"quantize__storage": "nf4"},
    "loftq": {"quantize__storage": "nf4", "variant__initialization": "loftq_iter_2"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders of runs whose adapters are random, in the place of training."""
    root = tmp_path_factory.mktemp("runs")
    smoke = small_model.smoke_runs(root / "small")
    for number, (name, changes) in enumerate(RUNS.items()):
        made = build(smoke(targets=("(query|up)/kernel",), **changes))
        folder = root / name
        run_record.claim(folder, made.config.plain)
        lj.save_adapter(folder, noisy(made.trainable, number, 0.1), made.frozen)
        scores = {"accuracy": 0.5}
        outcome = Outcome(steps=1, best_step=1, metrics_last=scores, metrics_best=scores)
        record = artifacts.record(made, outcome, seconds=1.0, status="completed")
        run_record.write(folder, record)
    return root


def combine(root, *runs, **flags):
    folders = ",".join(str(root / each) for each in runs)
    given = [f"--{name}={value}" for name, value in flags.items()]
    return commands.run("experiments.combine", f"--runs={folders}", *given)


def acting(run):
    merged = by_numpy(run.experiment.adapted.merge)(run.trainable, run.frozen)
    return flatten(merged)[0]


def before(run):
    made = run.experiment
    return flatten(made.adapted.disable(made.trainable, made.frozen))[0]


def test_a_combined_run_is_one_of_lora(root):
    out = root / "combined"
    keep = "classifier/bias"
    said = combine(root, "lora", "dora", weights="0.7,-0.4", rank=16, keep=keep, out=out)
    assert said.returncode == 0, said.stderr
    assert "layers/attention/query/kernel  16    0.00%" in said.stdout
    runs = open_runs([out, root / "lora", root / "dora"])
    found, one, two = map(acting, runs)
    first, second = (before(each) for each in runs[1:])  # the seeds of their heads differ
    for path, value in first.items():
        wanted = value + 0.7 * (one[path] - value) - 0.4 * (two[path] - second[path])
        wanted = one[path] if path == keep else wanted
        np.testing.assert_allclose(found[path], wanted, atol=2e-6, err_msg=path)
    content = json.loads((out / "combined.json").read_text(encoding="utf-8"))
    assert [each["weight"] for each in content["runs"]] == [0.7, -0.4]
    assert [each["variant"] for each in content["runs"]] == ["lora", "dora"]
    assert content["kept"] == [keep]
    assert content["runs"][1]["config_digest"] == runs[2].record.config_digest
    assert runs[0].config.study.size == runs[1].config.study.size == "smoke"
    assert np.shape(content["relative_errors"]["layers/up/kernel"]) == (2,)
    continued = build(parse({**runs[0].record.config, "start_from": str(out)}))
    for path, value in flatten(continued.trainable)[0].items():
        np.testing.assert_array_equal(value, flatten(runs[0].trainable)[0][path])
    spoiled = root / "spoiled"  # with the checksums of what it holds
    adapters = jax.tree.map(lambda x: np.full_like(x, np.nan), runs[0].trainable)
    lj.save_adapter(spoiled, adapters, runs[0].frozen)
    with pytest.raises(ValueError, match=r"start_from .*spoiled.*' holds NaN or an infinity"):
        build(parse({**runs[0].record.config, "start_from": str(spoiled)}))
    again = combine(root, "lora", by="negate", out=out)
    assert again.returncode == 1 and f"--out={out} exists" in again.stderr


@pytest.mark.parametrize(
    ("runs", "flags", "said"),
    [
        (["lora", "dora"], {"weights": "1"}, "--weights has 1 numbers, and --runs has 2 folders"),
        (["lora", "dora"], {"weights": "1,x"}, "--weights=1,x: expected numbers"),
        (
            ["lora"],
            {"by": "negat"},
            "--by=negat: there is no way 'negat' to combine adapters; nearest: 'negate'",
        ),
        (["lora", "none"], {}, "none: no such folder"),
        (["loftq"], {}, "loftq: LoftQ has quantised another matrix in the place of 'layers/"),
    ],
)
def test_mistakes_end_with_one_line(root, runs, flags, said):
    ended = combine(root, *runs, out=root / "never", **flags)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode == 1 and len(lines) == 1 and said in lines[0]
    assert not [path.name for path in root.iterdir() if "never" in path.name]


def test_runs_of_another_base_are_told_apart(root):
    with pytest.raises(ValueError, match=r"lora was trained on another base: .*; here is .*nf4"):
        open_runs([root / "lora", root / "nf4"])


def test_a_run_is_opened_when_what_it_started_from_is_gone(root, tmp_path):
    """Only what it was before training is in the earlier folder."""
    earlier = tmp_path / "earlier"
    shutil.copytree(root / "lora", earlier)
    record = read_record(root / "lora")
    record = dataclasses.replace(record, config={**record.config, "start_from": str(earlier)})
    run = open_run(root / "lora", record)
    assert run.config.start_from == str(earlier) and run.trainable["params"]
    for path, value in params_before(run).items():  # both folders have one adapter
        np.testing.assert_array_equal(value, run.trainable["params"][path])
    shutil.rmtree(earlier)
    again = open_run(root / "lora", record)
    for path, value in flatten(again.trainable)[0].items():
        np.testing.assert_array_equal(value, flatten(run.trainable)[0][path])
    with pytest.raises(FileNotFoundError, match="earlier"):
        params_before(again)


def test_what_needs_a_rank_says_so_before_it_reads_runs(root):
    ended = combine(root, "none", "neither", by="ties", out=str(root / "ties"))
    said = "error: --by=ties needs --rank, as its update has no rank of its own\n"
    assert (ended.returncode, ended.stderr) == (1, said)


def test_how_far_apart_two_runs_are(root):
    folders, plot = [str(root / each) for each in ("lora", "dora")], root / "distance.png"
    ended = commands.run("experiments.distance", f"--runs={','.join(folders)}", f"--plot={plot}")
    assert ended.returncode == 0, ended.stderr
    _, _, *rows, picture = ended.stdout.splitlines()
    assert picture == f"picture: {plot}" and plot.exists()
    values = {row.split()[0]: row.split()[1:] for row in rows}
    assert values.keys() == {"layers/attention/query/kernel", "layers/up/kernel"}
    run = open_runs([root / "lora"])[0]
    wanted = lj.distance.norms((run.trainable, run.frozen))["layers/up/kernel"].relative.mean()
    assert float(values["layers/up/kernel"][0]) == pytest.approx(wanted, rel=1e-3)
    assert values["layers/up/kernel"][-3:] == ["(i", "=", "2)"]  # the rank of one of them
    many = commands.run("experiments.distance", f"--runs={','.join(folders * 2)}")
    assert "--runs has 4 folders; expected one or two" in many.stderr
