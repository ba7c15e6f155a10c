"""The commands as a user calls them: mistakes end with one line before anything trains."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import lora_jax as lj
import variants
from configs import glue, quickstart
from experiments import build, run
from lora_jax import records
from lora_jax.models import pretrained

ROOT = Path(__file__).parent.parent
SMOKE = "configs/quickstart.py:size=smoke"


def command(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "experiments.train", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


def smoke(**changes):
    config = quickstart.get_config("size=smoke")
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config.to_dict()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"variant__rank": 999}, r"rank 999 exceeds min\(in, out\) = 384"),
        ({"variant__scale": "alpha/rnk"}, "nearest: 'alpha/rank'"),
        ({"model__name": "minilmm"}, "did you mean minilm"),
        ({"quantize__storage": "nf5"}, "unknown quantize.storage 'nf5'; nearest: 'nf4'"),
        ({"targets": (("up/kernel", {"rnk": 2}),)}, "no setting 'rnk'; nearest: 'rank'"),
        ({"variant__target_rank": 4}, "variant 'lora' has no setting 'target_rank'"),
        ({"model__pool": "max"}, "pool must be one of cls, mean"),
        ({"model__dtype": "float31"}, "nearest: 'float32'"),
        ({"data__name": "rotten_tomatos"}, "nearest: 'rotten_tomatoes'"),
        ({"data__train": 1}, "nothing to tell apart"),
        ({"data__validation": 90000}, "cannot hold out 90000"),
        ({"targets": ("quary/kernel",)}, "nearest: 'layers/attention/query/kernel'"),
        ({"targets": ("norm/scale",)}, "never multiplies by it"),
        ({"also_train": ("clasifier/.*",)}, "nearest: 'classifier/bias'"),
        ({"targets": ("classifier/kernel",)}, "both a target and in also_train"),
        ({"optimizer__schedule": "cosin"}, "nearest: 'cosine'"),
        ({"train__epochs": 0}, "epochs must be positive"),
        ({"train__batch_size": 0}, "batch_size must be positive"),
        ({"train__log_every": -1}, "log_every must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, r"seed must be below 2\*\*32"),
        ({"seed": 10**30}, r"seed must be below 2\*\*32"),
        ({"targets": (5,)}, r"targets: 5 is neither a pattern nor \(pattern, settings\)"),
        ({"targets": (("up/kernel", 5),)}, r"targets: \('up/kernel', 5\) is neither a pattern"),
        ({"targets": (("up/kernel",),)}, r"targets: \('up/kernel',\) is neither a pattern"),
        ({"targets": (("up/kernel", {"layers": 2}),)}, "layers 2 is not .start, stop, step"),
        ({"also_train": (5,)}, "also_train: 5 is not a pattern"),
        ({"quantize__patterns": (5,)}, "quantize.patterns: 5 is not a pattern"),
        ({"model__name": ""}, "unknown model ''"),
        ({"optimizer__learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"optimizer__b2": 1.0}, r"b2 must be in \[0, 1\)"),
        ({"variant__alpha": float("inf")}, "alpha must be a finite number"),
        ({"variant__name": "lo..ra"}, "unknown variant 'lo..ra'"),
        ({"train__accumulate": 3}, "multiple of train.accumulate"),
        ({"train__select": "worst"}, "expected last or best"),
    ],
)
def test_a_config_that_cannot_work(tmp_path, changes, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        run.run(smoke(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_own_data_does_not_stand_under_a_task(tmp_path):
    config = glue.get_config("task=cola,size=smoke")
    config.update({"data": {"source": "files"}})
    with pytest.raises(ValueError, match=r"cannot stand under cola of glue; use configs/own_data"):
        run.run(config.to_dict(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_smoke_run_leaves_everything_and_is_not_repeated(tmp_path):
    workdir = tmp_path / "run"
    done = command(f"--config={SMOKE}", f"--workdir={workdir}", "--config.variant.rank=4")
    assert done.returncode == 0, done.stderr
    record = records.read(workdir)
    assert record is not None
    assert record.status == "completed"
    assert record.config["variant"]["rank"] == 4
    assert record.config == json.loads((workdir / "config.json").read_text())
    # six linears a layer (4 of 384x384, 384x1536, 1536x384), six layers, and the new head
    assert record.parameters_trained == 6 * 4 * (4 * 768 + 2 * 1920) + 384 * 2 + 2
    assert record.steps == 8
    assert 0 <= record.metrics_last["accuracy"] <= 1

    experiment = build.build(record.config)
    trainable, _, meta = lj.load_adapter(workdir, experiment.trainable, experiment.frozen)
    assert meta == {"config": record.config}
    scores = experiment.evaluate(trainable)
    np.testing.assert_allclose(scores["accuracy"], record.metrics_last["accuracy"], atol=2e-3)
    merged = experiment.score(experiment.merged_call(trainable))
    np.testing.assert_allclose(merged["eval_loss"], scores["eval_loss"], rtol=1e-4)

    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    again = command(f"--config={SMOKE}", f"--workdir={workdir}", "--config.variant.rank=4")
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
    other = command(f"--config={SMOKE}", f"--workdir={workdir}")
    assert other.returncode == 1
    assert "config.variant.rank is 4 there and 8 here" in other.stderr
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_settings_by_pattern():
    targets = (("layers/up/kernel", {"rank": 2, "alpha": 4.0}), "layers/down/kernel")
    experiment = build.build(smoke(targets=targets, quantize__storage="nf4"))
    adapters = experiment.trainable["adapters"]
    assert {path: each["a"].shape[1] for path, each in adapters.items()} == {
        "layers/up/kernel": 2,
        "layers/down/kernel": 8,
    }
    assert experiment.frozen.base["layers/attention/query/kernel"]["codes"].dtype == np.uint8
    assert experiment.frozen.constants["layers/up/kernel"]["scale"].tolist() == [2.0] * 6


@pytest.mark.usefixtures("standard_promotion", "quick_compilation")
def test_adalora_scores_clipped_gradients():
    """Its first scores are |w g|, so twice as high where the norm may be twice as large."""
    config = smoke(variant__name="adalora", targets=("layers/attention/query/kernel",))
    experiment, scores = build.build(config), []
    for clip in (1e-4, 2e-4):
        changed = config | {"optimizer": config["optimizer"] | {"clip": clip}}
        one = dataclasses.replace(experiment, config=changed)
        state, _ = one.make_step()(one.start(), one.frozen, next(one.batches(0)))
        scores.append(state.variant_state[0]["importance"]["layers/attention/query/kernel"]["a"])
    assert scores[0].any()
    np.testing.assert_allclose(scores[1], 2 * scores[0], rtol=1e-4)


@pytest.mark.usefixtures("standard_promotion", "quick_compilation")
def test_a_record_counts_the_ranks_that_adalora_kept(tmp_path):
    """As papers do: 6 matrices of 384 x 384, with a mean rank of 3; the head is left out."""
    changes = {"variant__name": "adalora", "variant__rank": 5, "variant__target_rank": 3}
    targets = ("layers/attention/query/kernel",)
    changes |= {"data__max_length": 8, "data__buckets": 1, "train__max_steps": 4}
    record = run.run(smoke(**changes, targets=targets), tmp_path / "run")
    assert record.parameters_adapters == 6 * 3 * (384 + 384)
    assert record.parameters_trained == 6 * 5 * (384 + 384 + 1) + 2 * 384 + 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, storage",
    [*((name, "none") for name in variants.names()), ("lora", "int8"), ("dora", "nf4_double")],
)
def test_every_variant_trains_by_its_name(name, storage, tmp_path):
    config = quickstart.get_config(f"variant={name},size=smoke,storage={storage}").to_dict()
    with jax.numpy_dtype_promotion("standard"):
        record = run.run(config, tmp_path / "run")
    assert record.status == "completed"
    assert np.isfinite(record.metrics_last["eval_loss"])
    experiment = build.build(config)
    trainable, frozen, _ = lj.load_adapter(
        tmp_path / "run", experiment.trainable, experiment.frozen
    )
    again = dataclasses.replace(experiment, frozen=frozen).evaluate(trainable)
    np.testing.assert_allclose(again["eval_loss"], record.metrics_last["eval_loss"], rtol=1e-5)
    if name == "adalora":
        assert record.ranks is not None
        ranks = np.concatenate([np.ravel(each) for each in record.ranks.values()])
        assert ranks.sum() == 8 * len(ranks)
        assert (tmp_path / "run" / "ranks.png").exists()
        assert (tmp_path / "run" / "pruned.safetensors").exists()
    else:
        assert record.ranks is None


def copied_model(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(pretrained.locate("minilm"), folder)
    return folder


def test_a_tokenizer_with_more_words_than_the_model(tmp_path):
    folder = copied_model(tmp_path)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    tokenizer = json.loads(text)
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["the"], vocabulary["unheard-of"] = 30522, vocabulary["the"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ValueError, match="gives id 30522, the model's vocabulary has 30522"):
        build.build(smoke(model__name=str(folder)))


def test_every_config_is_plain_data_and_takes_its_arguments():
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.stem in ("__init__", "common", "common_tasks", "common_texts"):
            continue
        module = __import__(f"configs.{path.stem}", fromlist=["get_config"])
        assert "python -m experiments." in module.__doc__
        for size in ("full", "smoke"):
            config = module.get_config(f"size={size}").to_dict()
            assert records.config_digest(config) == records.config_digest(dict(config))


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    rng = np.random.default_rng()
    arguments = (f"--config={SMOKE}", "--config.train.checkpoint_every=1")
    straight = command(*arguments, f"--workdir={tmp_path / 'straight'}")
    assert straight.returncode == 0, straight.stderr
    killed = tmp_path / "killed"
    for step in sorted(rng.choice(np.arange(1, 8), size=3, replace=False)):
        kill_at(arguments, killed, int(step))
    last = command(*arguments, f"--workdir={killed}")
    assert last.returncode == 0, last.stderr
    adapters = [
        (tmp_path / name / "adapter.safetensors").read_bytes() for name in ("straight", "killed")
    ]
    assert adapters[0] == adapters[1]
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("straight", "killed")]
    assert logs[0] == logs[1]


def kill_at(arguments, workdir, step):
    """Start a run, and kill it as soon as the checkpoint of a step appears."""
    line = [sys.executable, "-m", "experiments.train", *arguments, f"--workdir={workdir}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    process = subprocess.Popen(
        line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    folder = workdir / "checkpoints"
    while process.poll() is None:
        begun = [path.name.partition(".")[0] for path in folder.glob("*")]
        if any(name.isdigit() and int(name) >= step for name in begun):
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)


@pytest.mark.slow
def test_the_quickstart_is_as_good_as_it_says(tmp_path):
    line = [sys.executable, "-m", "experiments.quickstart", f"--workdir={tmp_path}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "COLUMNS": "120"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    head, lora = (records.read(tmp_path / name) for name in ("head_only", "lora"))
    assert head is not None
    assert lora is not None
    assert head.metrics_last["accuracy"] >= 0.74
    assert lora.metrics_last["accuracy"] >= 0.82
    assert "LoRA, merged" in done.stdout
    assert done.stdout.count("before (trained head only): ") == 3
