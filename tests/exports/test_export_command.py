"""A run's export by the command: the folder computes what the run does."""

import json

import commands
import hub_uploads
import jax
import numpy as np
import pytest
import small_language
import small_model
import text_runs
from completed_run import completed
from flax import nnx

import lora_jax as lj
import variants
from experiments.setup.config import parse
from lora_jax.data import load_tokenizer
from lora_jax.files.json_text import config_digest, plain
from lora_jax.interchange.names import names_of
from lora_jax.models.published.load import load_classifier, load_decoder
from lora_jax.partition import flatten
from lora_jax.records import run_record

pytestmark = pytest.mark.slow
EXPORT = "experiments.export"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    smoke = small_model.smoke_runs(tmp_path_factory.mktemp("small"))
    config = smoke("storage=nf4", variant__rank=2, model__head_dropout=0.3)
    return completed(config, tmp_path_factory.mktemp("runs") / "run")


def test_a_run_becomes_a_model(run, tmp_path):
    """Of a quantised base, whose error is said; the head reads a mean, which is said, too."""
    folder, experiment, trainable = run
    line = ("--as=merged", f"--run={folder}", f"--out={tmp_path / 'out'}", "--shard_size=10KB")
    done = commands.run(EXPORT, *line)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "out/export.json").read_text())
    assert said["run"] == folder.name and said["variant"] == "lora"
    assert said["rounding_error"] == {}
    errors = said["quantization_error"]
    assert len(errors) == 12 and all(0.05 < each < 0.15 for each in errors.values())
    lines = done.stdout.splitlines()
    assert lines[0].endswith("and the dense weights keep its relative Frobenius errors:")
    both = sorted(error for name, error in errors.items() if name.endswith("self.key.weight"))
    key = "  bert.encoder.layer.*.attention.self.key.weight"
    assert f"{key} {both[0]:.2%} to {both[1]:.2%}" in lines
    assert "logits = (mean of last_hidden_state over unmasked tokens)" in lines[7] == said["head"]
    assert lines[8] == "to load it:"
    assert lines[-2:] == [
        f'    model = AutoModel.from_pretrained("{tmp_path / "out"}")',
        f"merged: {tmp_path / 'out'}",
    ]

    options = {"num_labels": 2, "pool": "mean", "key": jax.random.key(0)}
    model, fresh = load_classifier(tmp_path / "out", **options)
    assert fresh == () and model.config.head_dropout == 0.3
    batch = next(experiment.batches(0))
    inputs = [batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")]
    expected = experiment.adapted_call(trainable)(batch)
    forward, params = lj.from_nnx(model)
    np.testing.assert_allclose(jax.jit(forward)(params, *inputs), expected, rtol=1e-5, atol=1e-5)
    text = "as you like it"
    ids = [load_tokenizer(p).backend.encode(text).ids for p in (tmp_path / "out",)]
    assert ids == [experiment.texts.tokenizer.backend.encode(text).ids]

    again = commands.run(EXPORT, *line)
    assert again.returncode == 1
    assert again.stderr == f"error: {tmp_path / 'out'} is not empty: name a new or empty folder\n"


def test_an_export_says_where_it_is_from_and_stays_here(run, tmp_path):
    """Its card and its config; no socket is opened, though there are a token and a Hub."""
    folder, experiment, _ = run
    line = (EXPORT, "--as=merged", f"--run={folder}", f"--out={tmp_path / 'out'}")
    with hub_uploads.serving() as hub:
        there = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub_uploads.TOKEN}
        done = commands.run("tests/support/without_sockets.py", *line, "--dtype=float16", **there)
        assert done.returncode == 0, done.stderr
        assert hub.asked == []
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert f"`{run_record.read(folder).data_digest}`" in text
    said = "--run=run --as=merged --out=out --dtype=float16"
    assert f"\npython -m experiments.export {said}\n" in text
    assert str(tmp_path) not in text and str(folder.parent) not in text
    again = parse(json.loads((tmp_path / "out/run.json").read_text()))
    assert config_digest(again.plain) == config_digest(plain(experiment.config.plain))


def test_a_push_uploads_what_is_in_the_folder(run, tmp_path):
    """After the checks of the name and of the access, which come before anything is written."""
    folder, _, _ = run
    line = (EXPORT, "--as=merged", f"--run={folder}", f"--out={tmp_path / 'out'}")
    with hub_uploads.serving() as hub:
        there = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub_uploads.TOKEN, "HF_HUB_DISABLE_XET": "1"}
        for flags, said in (
            (("--push=bob/lora",), "error: --push=bob/lora: this token is of ada, "),
            (("--public",), "error: --public is for --push, which is not given"),
        ):
            done = commands.run(*line, *flags, **there)
            assert done.returncode == 1 and done.stderr.startswith(said)
            assert list(tmp_path.iterdir()) == [] and hub.visibility == {}
        done = commands.run(*line, "--push=ada/lora", **there)
        assert done.returncode == 0, done.stderr
        made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert hub.files == {"ada/lora": made} and hub.visibility == {"ada/lora": "private"}
        assert f"\npushed, private: {hub.url}/ada/lora\n" in done.stdout
    assert b'AutoModel.from_pretrained("ada/lora")' in made["README.md"]
    assert b"--push" not in made["README.md"]


def test_a_run_becomes_a_checkpoint_of_loralib(run, tmp_path):
    """It is read onto the weights that the run's quantised base stands for."""
    folder, experiment, trainable = run
    out = tmp_path / "out"
    done = commands.run(EXPORT, "--as=loralib", f"--run={folder}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    said = json.loads((out / "export.json").read_text())
    alpha = experiment.config.variant.settings["alpha"]
    layer = f"loralib.Linear(..., r=2, lora_alpha={alpha:g})"
    assert (said["r"], said["lora_alpha"]) == (2, alpha) and set(said["layers"].values()) == {layer}
    assert f"  {len(said['layers'])} x {layer}" in done.stdout.splitlines()
    assert len(said["quantization_error"]) == 12 and "lora.safetensors holds the he" in said["head"]
    base = experiment.adapted.merge(experiment.trainable, experiment.frozen)  # whose B is zero
    batch = next(experiment.batches(0))
    inputs = [batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")]
    options = {"num_labels": 2, "pool": "mean", "key": jax.random.key(0)}
    model = load_classifier(experiment.config.model.name, **options).model
    forward, names = lj.from_nnx(model)[0], names_of(model.config)
    file = out / "lora.safetensors"
    loaded = lj.load_loralib(file, variants.from_peft, names, forward, base, *inputs)
    got = loaded.adapted.apply(*loaded[1:3], *inputs)
    expected = experiment.adapted_call(trainable)(batch)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_left_of_an_export_that_fails(run, tmp_path):
    """The record of another base than is there now."""
    folder, experiment, _ = run
    wrong = tmp_path / "run"
    run_record.claim(wrong, experiment.config.plain)
    run_record.write(wrong, run_record.read(folder))
    done = commands.run(EXPORT, "--as=merged", f"--run={wrong}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "adapter.safetensors" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_language_model_becomes_one(tmp_path):
    """With what its folder publishes beside the weights."""
    places = small_language.write_places(tmp_path)
    published = places / "model"
    (published / "generation_config.json").write_text('{"top_k": 7}')
    folder, experiment, trainable = completed(text_runs.config(places), tmp_path / "run")
    line = ("--as=merged", f"--run={folder}", f"--out={tmp_path / 'out'}", "--dtype=bfloat16")
    done = commands.run(EXPORT, *line)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rounding: relative Frobenius errors of at most 0.")
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_text() == (published / name).read_text()
    expected, _ = flatten(experiment.adapted.merge(trainable, experiment.frozen))
    found, _ = flatten(nnx.state(load_decoder(tmp_path / "out")))
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, rtol=2**-8, atol=1e-6, err_msg=path)
