"""The commands as a user calls them: mistakes end with one line before anything trains."""

import dataclasses
import json
import shutil
import types
from pathlib import Path

import commands
import jax
import numpy as np
import pytest
import safetensors.numpy
import small_model
from commands import ROOT

import lora_jax as lj
import variants
from configs import glue
from configs.settings import ModelSettings
from experiments.runs import announce, run
from experiments.runs.finished_run import open_run
from experiments.runs.group import Group
from experiments.setup import from_config
from experiments.setup.config import parse
from experiments.setup.experiment import build
from experiments.setup.forward_pass import predictor
from experiments.sweeps import preflight
from experiments.sweeps.trials import Trial
from lora_jax.files.json_text import canonical, plain
from lora_jax.records import run_record
from lora_jax.records.metrics_log import LostFolderError

SMOKE = "configs/quickstart.py:size=smoke"


def done(*arguments):
    """A run by the command, which has ended well."""
    ended = commands.run("experiments.train", *arguments, **commands.with_devices(1))
    assert ended.returncode == 0, ended.stderr
    return ended


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return small_model.smoke_runs(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return small_model.flags(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trained(flags, tmp_path_factory):
    """The folder of that run."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    said = done(*flags, f"--workdir={workdir}").stdout
    assert "completed after 8 steps: accuracy" in said
    assert f"record and adapter: {workdir}" in said
    return workdir


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"variant__rank": 999, "variant__initialization": "pissa"},
            r"rank = 999 directions, more than min\(in, out\) = 16",
        ),
        ({"variant__scale": "alpha/rnk"}, "nearest: 'alpha/rank'"),
        ({"model__name": "minilmm"}, "did you mean minilm"),
        ({"quantize__storage": "nf5"}, "unknown quantize.storage 'nf5'; nearest: 'nf4'"),
        ({"targets": (("up/kernel", {"rnk": 2}),)}, "no setting 'rnk'; nearest: 'rank'"),
        ({"variant__target_rank": 4}, "variant 'lora' has no setting 'target_rank'"),
        ({"model__pool": "max"}, "config.model.pool 'max': expected cls or mean"),
        ({"model__dtype": "float31"}, "nearest: 'float32'"),
        ({"data__name": "rotten_tomatos"}, "nearest: 'rotten_tomatoes'"),
        ({"data__train": 1}, "nothing to tell apart"),
        ({"data__validation": 90000}, "^config.data.validation 90000: .*cannot hold out 90000"),
        ({"data__train": 500}, "^config.data.train 500: .*cannot draw 500 of 64 .*; 0 takes all$"),
        ({"targets": ("quary/kernel",)}, "nearest: 'layers/attention/query/kernel'"),
        ({"targets": ("norm/scale",)}, "no product shows its in and out axes"),
        ({"also_train": ("clasifier/.*",)}, "nearest: 'classifier/bias'"),
        ({"targets": ("classifier/kernel",)}, "both a target and in also_train"),
        (
            {"optimizer__schedule": "cosin"},
            "unknown config.optimizer.schedule 'cosin'; nearest: 'cosine'",
        ),
        ({"data__max_length": -3}, "config.data.max_length must be positive, got -3"),
        ({"variant__rank": 0}, "^config.variant: rank must be an integer of at least 1, got 0"),
        (
            {"targets": (("up/kernel", {"rank": 0}),)},
            "^config.targets: 'up/kernel': rank must be an integer of at least 1, got 0",
        ),
        ({"train__epochs": -1}, "epochs must be at least 0"),
        (
            {"train__epochs": 0, "model__name": "minilm"},
            "epochs 0 scores without training, and classifier/kernel, classifier/bias would be ran",
        ),
        ({"train__epochs": 10**300}, "epochs 1e\\+300: a run has at most 2,147,483,647 steps"),
        (
            {"optimizer__head_learning_rate": 1e-2, "also_train": ()},
            "head_learning_rate is the rate of config.also_train, which is empty",
        ),
        ({"data__files": {"train": ["a.csv"]}}, "data.files.train must be a text, got .'a.csv'"),
        ({"train__batch_size": 0}, "batch_size must be positive"),
        ({"train__log_every": -1}, "log_every must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, r"seed must be below 2\*\*32"),
        ({"seed": 10**30}, r"seed must be below 2\*\*32"),
        ({"targets": (5,)}, r"targets: 5 is neither a pattern nor \(pattern, settings\)"),
        ({"targets": (("up", {"rank": 4}), "up")}, r"config\.targets names 'up' twice"),
        ({"targets": (("up/kernel", 5),)}, r"targets: \('up/kernel', 5\) is neither a pattern"),
        ({"targets": (("up/kernel",),)}, r"targets: \('up/kernel',\) is neither a pattern"),
        ({"targets": (("up/kernel", {"layers": 2}),)}, "layers 2 is not .start, stop, step"),
        ({"targets": (("up/kernel", {"layers": (0, 2, 0)}),)}, "layers .* is not .start, stop, st"),
        ({"also_train": (5,)}, "also_train: 5 is not a pattern"),
        ({"quantize__patterns": (5,)}, "quantize.patterns: 5 is not a pattern"),
        ({"model__name": ""}, "unknown model ''"),
        ({"optimizer__learning_rate": float("nan")}, "learning_rate must be positive"),
        (
            {"optimizer__learning_rate": 1e40},
            "learning_rate must be positive and finite in fl",
        ),
        ({"optimizer__eps": 1e-50}, "eps must be positive and finite in float32"),
        ({"optimizer__eps": 1e30}, "eps must be 1 at most, got 1e\\+30"),
        ({"optimizer__weight_decay": 1e40}, "weight_decay must be finite in float32"),
        ({"optimizer__b2": 1.0}, r"b2 must be in \[0, 1\)"),
        ({"optimizer__b2": 1 - 1e-12}, r"b2 must be in \[0, 1\), in float32"),
        ({"variant__alpha": float("inf")}, "alpha must be a finite number"),
        ({"variant__name": "lo..ra"}, "unknown variant 'lo..ra'"),
        ({"train__accumulate": 3}, "multiple of train.accumulate"),
        ({"train__select": "worst"}, "expected last or best"),
    ],
)
def test_a_config_that_cannot_work(smoke, tmp_path, changes, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        run.run(smoke(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("standard_promotion")
def test_a_run_whose_folder_is_anothers_by_now_leaves_it_alone(smoke, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    score = Group.evaluate

    def evaluate(group, number, trainable):
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "config.json").write_text("another's")
        return score(group, number, trainable)

    monkeypatch.setattr(Group, "evaluate", evaluate)
    with pytest.raises(LostFolderError, match="was removed or replaced during its run"):
        run.run(smoke(train__checkpoint_every=8), folder, audit=False)
    assert [path.read_text() for path in folder.rglob("*")] == ["another's"]


@pytest.mark.usefixtures("standard_promotion")
def test_a_model_of_few_positions(smoke, tmp_path):
    """Texts are cut to what it takes; where that leaves them no room, its file is named."""
    folder = shutil.copytree(smoke().model.name, tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    (name,) = [each for each in weights if "position_embeddings" in each]
    for positions in (4, 2):
        weights[name] = weights[name][:positions]
        safetensors.numpy.save_file(weights, folder / "model.safetensors")
        content["max_position_embeddings"] = positions
        (folder / "config.json").write_text(json.dumps(content))
        config = smoke(model__name=str(folder))
        trials = [Trial("one", (), {}, config.plain)]
        if positions == 4:
            preflight.check_trials(trials)
            said = []
            texts = announce.announce(config, said.append)
            assert said
            assert texts.boundaries == build(config).texts.boundaries == (4,)
            continue
        said = (
            r"max_length 2 leaves no .*; config\.data\.max_length is 24, and .*model/config\.json t"
        )
        for call, given in ((build, config), (preflight.check_trials, trials)):
            with pytest.raises(ValueError, match=said):
                call(given)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_texts_are_pooled_as_the_config_says(smoke, pool):
    built = build(smoke(model__pool=pool))
    weights = {*built.frozen.base, *built.trainable["params"]}
    assert any(path.startswith("pooler/") for path in weights) == (pool == "cls")


def test_own_data_does_not_stand_under_a_task(tmp_path):
    config = glue.get_config("task=cola,size=smoke")
    config.update({"data": {"source": "files"}})
    with pytest.raises(ValueError, match=r"cannot stand under cola of glue; use configs/own_data"):
        run.run(parse(config.to_dict()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_smoke_run_leaves_everything_and_is_not_repeated(trained):
    record = run_record.read(trained)
    assert record is not None
    assert record.status == "completed"
    config = json.loads((trained / "config.json").read_text())
    assert record.config == config
    assert (config["variant"]["rank"], config["data"]["train"]) == (4, 64)
    # six linears a layer (4 of 16x16, 16x32, 32x16), two layers, and the new head
    assert record.parameters_trained == 2 * 4 * (4 * 32 + 2 * 48) + 16 * 2 + 2
    assert record.steps == 8
    assert 0 <= record.metrics_last["accuracy"] <= 1

    experiment = build(parse(config))
    trainable, _, meta = lj.load_adapter(trained, experiment.trainable, experiment.frozen)
    assert meta == {"config": config}
    scores = experiment.score(experiment.adapted_call(trainable))
    np.testing.assert_allclose(scores["accuracy"], record.metrics_last["accuracy"], atol=2e-3)
    np.testing.assert_allclose(scores["eval_loss"], record.metrics_last["eval_loss"], rtol=1e-4)
    merged = experiment.score(experiment.merged_call(trainable))
    np.testing.assert_allclose(merged["eval_loss"], scores["eval_loss"], rtol=1e-4)

    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert run.run(parse(config), trained) == record
    config["variant"]["rank"] = 8
    with pytest.raises(ValueError, match=r"config\.variant\.rank is 4 there and 8 here"):
        run.run(parse(config), trained)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_outputs_are_in_the_order_of_the_data(smoke):
    """Batches are of rows of like lengths."""
    experiment = build(smoke(data__buckets=2))
    assert len(experiment.texts.boundaries) == 2
    for part, encoded in experiment.texts.encoded.items():
        found = experiment.outputs(lambda batch: np.asarray(batch["input_ids"])[:, :2], part)
        starts = [encoded.ids[start : start + 2] for start in encoded.offsets[:-1]]
        np.testing.assert_array_equal(found, starts)
        lengths = experiment.outputs(lambda b: np.sum(b["attention_mask"], 1)[:, None], part)
        np.testing.assert_array_equal(lengths[:, 0], encoded.lengths)


def test_fewer_examples_are_drawn_as_asked(smoke):
    first, again, other = (
        from_config.make_task(smoke(data__train=8, data__draw=draw).data) for draw in (0, 0, 1)
    )
    assert first.digest() == again.digest() != other.digest()
    assert len(first.train) == len(other.train) == 8


def test_a_model_without_dropout_of_its_own_gets_no_key_for_it():
    def keys(dropout):
        seen = types.SimpleNamespace(apply=lambda *given, **keys: set(keys))
        names = ("input_ids", "attention_mask", "token_type_ids")
        batch = dict.fromkeys(names)
        model = ModelSettings(name="any", dropout=dropout)
        return predictor(seen, model)(None, None, batch, jax.random.key(0))

    assert (keys(True), keys(False)) == ({"dropout_key", "rng"}, {"dropout_key"})


def test_a_learning_rate_of_the_head_is_kept_as_a_ratio(smoke):
    config = smoke(optimizer__learning_rate=2e-3, optimizer__head_learning_rate=1e-2)
    assert from_config.make_hyper(config, 10)["head_ratio"] == pytest.approx(5)


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_adalora_scores_clipped_gradients(smoke):
    """Its first scores are |w g|, so twice as high where the norm may be twice as large.

    In the paper's mode: in the other, w is the weight after the step, which Adam's epsilon enters.
    """
    targets = ("layers/attention/query/kernel",)
    config = smoke("variant=adalora", targets=targets, variant__mode="paper")
    experiment, scores = build(config), []
    for clip in (1e-4, 2e-4):
        clipped = dataclasses.replace(config.optimizer, clip=clip)
        changed = dataclasses.replace(config, optimizer=clipped)
        one = dataclasses.replace(experiment, config=changed)
        state, _ = one.make_step()(one.start(), one.frozen, next(one.batches(0)))
        scores.append(state.variant_state[0]["importance"]["layers/attention/query/kernel"]["a"])
    assert scores[0].any()
    np.testing.assert_allclose(scores[1], 2 * scores[0], rtol=1e-4)


@pytest.mark.usefixtures("standard_promotion")
def test_a_record_counts_the_ranks_that_adalora_kept(smoke, tmp_path):
    """As papers do: 2 matrices of 16 x 16, with a mean rank of 3; the head is left out."""
    changes = {"variant__rank": 5, "variant__target_rank": 3, "train__max_steps": 4}
    config = smoke("variant=adalora", targets=("layers/attention/query/kernel",), **changes)
    record = run.run(config, tmp_path / "run")
    assert record.parameters_adapters == 2 * 3 * (16 + 16)
    assert record.parameters_trained == 2 * 5 * (16 + 16 + 1) + 2 * 16 + 2
    assert sum(np.ravel(list(record.ranks.values()))) == 2 * 3
    assert {"ranks.png", "pruned.safetensors"} <= {each.name for each in tmp_path.rglob("*")}


ALONE = ("bitfit", "full", "head_only", "trainable_tokens")
"""Variants that adapt no matrix."""
MATRICES = ("query", "key", "value", "output", "up", "down")
OF_MATRICES = [name for name in variants.names() if name not in ALONE]


@pytest.mark.slow
@pytest.mark.parametrize("start", range(len(MATRICES)))
def test_every_variant_trains_by_its_name(start, smoke, tmp_path):
    """Six at a time, each on a matrix of its own."""
    chosen = dict(zip(MATRICES, OF_MATRICES[start :: len(MATRICES)], strict=False))
    fewer = {"fourierft": {"frequencies": 20}}  # of 16 x 16 entries
    targets = [(f"{k}/kernel", {"name": n, **fewer.get(n, {})}) for k, n in chosen.items()]
    record = assert_trains_and_is_read(smoke(targets=tuple(targets)), tmp_path)
    assert (record.ranks is None) == {"adalora", "eva"}.isdisjoint(chosen.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "arg",
    [
        *(f"variant={name}" for name in ALONE),
        "variant=lora,storage=int8",
        "variant=dora,storage=nf4_double",
    ],
)
def test_a_variant_trains_by_its_name(arg, smoke, tmp_path):
    assert assert_trains_and_is_read(smoke(arg), tmp_path).ranks is None


def assert_trains_and_is_read(config, folder):
    with jax.numpy_dtype_promotion("standard"):
        record = run.run(config, folder / "run")
    assert record.status == "completed"
    assert np.isfinite(record.metrics_last["eval_loss"])
    experiment = build(config)
    trainable, frozen, _ = lj.load_adapter(folder / "run", experiment.trainable, experiment.frozen)
    mine = dataclasses.replace(experiment, frozen=frozen)
    again = mine.score(mine.adapted_call(trainable))
    np.testing.assert_allclose(again["eval_loss"], record.metrics_last["eval_loss"], rtol=1e-5)
    return record


def test_a_tokenizer_with_more_words_than_the_model(smoke, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(smoke().model.name, folder)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    tokenizer = json.loads(text)
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["the"], vocabulary["unheard-of"] = 30522, vocabulary["the"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ValueError, match="gives id 30522, the model's vocabulary has 30522"):
        build(smoke(model__name=str(folder)))


def test_a_tokenizer_that_has_changed_since_the_run_began(trained, tmp_path):
    """The weights are the same, but other tokens would make other results."""
    config = parse(json.loads((trained / "config.json").read_text()))
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "record.json").unlink()
    settings = Path(config.model.name) / "tokenizer_config.json"
    before = settings.read_bytes()
    settings.write_bytes(before + b"\n")
    try:
        with pytest.raises(ValueError, match="a run with other files of config and tokenizer"):
            run.run(config, tmp_path / "run", audit=False)
        with pytest.warns(UserWarning, match="its tokenizer has changed since the run"):
            open_run(trained, run_record.read(trained))
    finally:
        settings.write_bytes(before)


def test_every_config_is_plain_data_and_takes_its_arguments():
    for path in sorted((ROOT / "configs").glob("*.py")):
        module = __import__(f"configs.{path.stem}", fromlist=["get_config"])
        if not hasattr(module, "get_config"):
            continue
        assert "python -m experiments." in module.__doc__
        for size in ("full", "smoke"):
            config = module.get_config(f"size={size}").to_dict()
            assert json.loads(canonical(plain(config))) == plain(config)


@pytest.mark.parametrize("damaged", [True, False])
def test_an_ended_run_whose_adapter_is_lost_is_not_called_complete(
    flags, trained, tmp_path, damaged
):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    adapter = workdir / "adapter.safetensors"
    content = adapter.read_bytes()
    adapter.write_bytes(content[: len(content) // 2]) if damaged else adapter.unlink()
    ended = commands.run("experiments.train", *flags, f"--workdir={workdir}")
    said = ended.stderr.splitlines()[-1]  # after that of the devices
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert said.startswith(f"error: --workdir={workdir}: its run has ended, but ")
    assert str(adapter) in said and said.endswith("; train it again in a new folder")


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(flags, trained, tmp_path):
    rng = np.random.default_rng()
    killed = tmp_path / "killed"
    for step in sorted(rng.choice(np.arange(1, 8), size=2, replace=False)):
        kill_at([*flags, f"--workdir={killed}", "--noaudit"], killed, int(step))
        assert not (killed / "record.json").exists()
    done(*flags, f"--workdir={killed}")
    assert [run_record.read(each).audit is None for each in (killed, trained)] == [True, False]
    for name in ("adapter.safetensors", "metrics.jsonl"):
        assert (killed / name).read_bytes() == (trained / name).read_bytes()


def kill_at(arguments, workdir, step):
    """Start a run, and kill it as soon as the checkpoint of a step appears."""
    started = commands.Started("experiments.train", *arguments, **commands.with_devices(1))
    folder = workdir / "checkpoints"
    while started.running:
        begun = [path.name.partition(".")[0] for path in folder.glob("*")]
        if any(name.isdigit() and int(name) >= step for name in begun):
            started.kill()
