"""A run's export by the command, in each format: others compute what the run does."""

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
from safetensors.numpy import load_file

import lora_jax as lj
import variants
from experiments.imports import adapter_source, imported_run
from experiments.imports.adapter_source import read_adapter
from experiments.setup.config import parse
from experiments.setup.load import load
from lora_jax.data import load_tokenizer
from lora_jax.files.json_text import config_digest, plain
from lora_jax.interchange.names import names_of
from lora_jax.models.published.load import load_classifier, load_decoder
from lora_jax.partition import flatten
from lora_jax.records import run_record

pytestmark = pytest.mark.slow
EXPORT = "experiments.export"
MERGED = (EXPORT, "--as=merged")


def export(folder, out, *flags):
    """What the command prints, and what `export.json` says."""
    done = commands.run(EXPORT, f"--run={folder}", f"--out={out}", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), json.loads((out / "export.json").read_text())


def inputs_of(experiment):
    batch = next(experiment.batches(0))
    return [batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")]


def base_of(experiment, pool="mean"):
    """The base as it is published, with a new head."""
    options = {"num_labels": 2, "pool": pool, "key": jax.random.key(7)}
    return load_classifier(experiment.config.model.name, **options).model


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return small_model.smoke_runs(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def run(smoke, tmp_path_factory):
    config = smoke("storage=nf4", variant__rank=2, model__head_dropout=0.3)
    return completed(config, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """Runs of a small decoder, by method."""
    root = tmp_path_factory.mktemp("language")
    places, targets = small_language.write_places(root), ("layers/.*kernel",)
    (places / "model" / "generation_config.json").write_text('{"top_k": 7}')
    made = {}
    for method in ("rslora", "dora"):
        config = text_runs.config(places, method, variant__rank=2, targets=targets)
        made[method] = completed(config, root / method)
    return made


def test_a_run_becomes_a_model(run, tmp_path):
    """Of a quantised base, whose error is said; the head reads a mean, which is said, too."""
    folder, experiment, trainable = run
    out, size = tmp_path / "out", "--shard_size=10KB"
    lines, said = export(folder, out, "--as=merged", size)
    assert (said["run"], said["variant"], said["rounding_error"]) == (folder.name, "lora", {})
    errors = said["quantization_error"]
    assert len(errors) == 12 and all(0.05 < each < 0.15 for each in errors.values())
    assert lines[0].endswith("and the dense weights keep its relative Frobenius errors:")
    both = sorted(error for name, error in errors.items() if name.endswith("self.key.weight"))
    key = "  bert.encoder.layer.*.attention.self.key.weight"
    assert f"{key} {both[0]:.2%} to {both[1]:.2%}" in lines
    assert "logits = (mean of last_hidden_state over unmasked tokens)" in lines[7] == said["head"]
    loading = f'    model = AutoModel.from_pretrained("{out}")'
    assert (lines[8], lines[-2:]) == ("to load it:", [loading, f"merged: {out}"])

    options = {"num_labels": 2, "pool": "mean", "key": jax.random.key(0)}
    model, fresh = load_classifier(out, **options)
    assert fresh == () and model.config.head_dropout == 0.3
    expected = experiment.adapted_call(trainable)(next(experiment.batches(0)))
    forward, params = lj.from_nnx(model)
    got = jax.jit(forward)(params, *inputs_of(experiment))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    tokenizers = load_tokenizer(out), experiment.texts.tokenizer
    one, other = (each.backend.encode("as you like it").ids for each in tokenizers)
    assert one == other

    again = commands.run(*MERGED, f"--run={folder}", f"--out={out}", size)
    said = f"error: {out} is not empty: name a new or empty folder\n"
    assert (again.returncode, again.stderr) == (1, said)


def test_an_export_says_where_it_is_from_and_stays_here(run, tmp_path):
    """Its card and its config; no socket is opened, though there are a token and a Hub."""
    folder, experiment, _ = run
    line = (*MERGED, f"--run={folder}", f"--out={tmp_path / 'out'}")
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
    line = (*MERGED, f"--run={folder}", f"--out={tmp_path / 'out'}")
    with hub_uploads.serving() as hub:
        there = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub_uploads.TOKEN, "HF_HUB_DISABLE_XET": "1"}
        for flags, said in (
            (("--push=bob/lora",), "error: --push=bob/lora: this token belongs to ada, "),
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
    lines, said = export(folder, tmp_path / "out", "--as=loralib")
    alpha = experiment.config.variant.settings["alpha"]
    layer = f"loralib.Linear(..., r=2, lora_alpha={alpha:g})"
    assert (said["r"], said["lora_alpha"]) == (2, alpha) and set(said["layers"].values()) == {layer}
    assert f"  {len(said['layers'])} x {layer}" in lines
    assert len(said["quantization_error"]) == 12 and "lora.safetensors holds the he" in said["head"]
    base = experiment.adapted.merge(experiment.trainable, experiment.frozen)  # whose B is zero
    model, inputs = base_of(experiment), inputs_of(experiment)
    onto = names_of(model.config), lj.from_nnx(model)[0], base, *inputs
    loaded = lj.load_loralib(tmp_path / "out/lora.safetensors", variants.from_peft, *onto)
    got = loaded.adapted.apply(*loaded[1:3], *inputs)
    expected = experiment.adapted_call(trainable)(next(experiment.batches(0)))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_left_of_an_export_that_fails(run, tmp_path):
    """The record of another base than is there now."""
    folder, experiment, _ = run
    wrong = tmp_path / "run"
    run_record.claim(wrong, experiment.config.plain)
    run_record.write(wrong, run_record.read(folder))
    done = commands.run(*MERGED, f"--run={wrong}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "adapter.safetensors" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_language_model_becomes_one(language, tmp_path):
    """With what its folder publishes beside the weights."""
    folder, experiment, trainable = language["rslora"]
    lines, _ = export(folder, tmp_path / "out", "--as=merged", "--dtype=bfloat16")
    assert lines[0].startswith("rounding: relative Frobenius errors of at most 0.")
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        published = folder.parent / "model" / name
        assert (tmp_path / "out" / name).read_text() == published.read_text()
    expected, _ = flatten(experiment.adapted.merge(trainable, experiment.frozen))
    found, _ = flatten(nnx.state(load_decoder(tmp_path / "out")))
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, rtol=2**-8, atol=1e-6, err_msg=path)


def loaded(out, experiment, pool, head):
    """The base as it is published, with the adapter of a folder, and the folder's config."""
    model = base_of(experiment, pool)
    names, inputs = names_of(model.config, head=head), inputs_of(experiment)
    return lj.load_peft(out, variants.from_peft, names, *lj.from_nnx(model), *inputs)


def test_a_classifier_of_the_first_token(smoke, tmp_path):
    """Its head is in the folder whole, the pooler that no checkpoint has and that did not train."""
    config = smoke("variant=dora", variant__rank=2, model__pool="cls")
    folder, experiment, trainable = completed(config, tmp_path / "run")
    said, content = export(folder, tmp_path / "out", "--as=peft")
    where = experiment.config.model.name
    auto = "AutoModelForSequenceClassification"
    options = "num_labels=2, dtype='float32'"
    assert f"    base = {auto}.from_pretrained('{where}', {options})" in said
    found = loaded(tmp_path / "out", experiment, "cls", head=True)
    assert found.config["task_type"] == content["task_type"] == "SEQ_CLS"
    assert found.config["base_model_name_or_path"] == content["base_model_name_or_path"] == where
    assert found.config["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    expected = experiment.adapted_call(trainable)(next(experiment.batches(0)))
    apply = jax.jit(found.adapted.apply)
    logits = apply(found.trainable, found.frozen, *inputs_of(experiment))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert (tmp_path / "out/tokenizer.json").is_file()


def test_an_encoder_whose_head_reads_a_mean(run, tmp_path):
    """Of a quantised base; the head is in a file of its own."""
    folder, experiment, trainable = run
    said, content = export(folder, tmp_path / "out", "--as=peft")
    assert said[0] == content["head"] and "head.safetensors holds the head; logits =" in said[0]
    assert said[1].startswith("the adapter was trained on a base quantised as nf4; how far each st")
    assert len(content["quantization_error"]) == 12 and said[9] == "to load it:"
    assert said[8].startswith("adapter_config.json names the base by its folder on the machine")
    assert said[11] == "    from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig"
    assert said[14].startswith("    base = AutoModel.from_pretrained(")
    assert "BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4')" in said[15]

    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    assert all(each.startswith("base_model.model.encoder.layer.") for each in tensors)
    found = loaded(tmp_path / "out", experiment, "mean", head=False)
    assert found.config["task_type"] == "FEATURE_EXTRACTION"
    assert found.config["modules_to_save"] is None
    expected = changes(experiment, trainable)
    got = changes(found, found.trainable)  # on the published base
    assert got.keys() == expected.keys() and len(got) == 6
    for path, change in expected.items():
        np.testing.assert_allclose(got[path], change, atol=1e-5, err_msg=path)
    head = load_file(tmp_path / "out/head.safetensors")
    trained = trainable["params"]
    np.testing.assert_array_equal(head["classifier.weight"].T, trained["classifier/kernel"])
    np.testing.assert_array_equal(head["classifier.bias"], trained["classifier/bias"])
    source, model = adapter_source.find(str(tmp_path / "out")), load(experiment.config)
    again = read_adapter(source, experiment.config, model)
    assert again.trainable["params"].keys() == trained.keys()
    assert not imported_run.drawn(model, again)
    jax.tree.map(np.testing.assert_array_equal, again.trainable["params"], trained)
    config = imported_run.config_of(experiment.config.plain, again)
    imported_run.experiment_of(config, model, again)  # that config makes this adapter


def changes(made, trainable):
    """W' - W of every stack of kernels, by path."""
    both = made.adapted.merge(trainable, made.frozen), made.adapted.disable(trainable, made.frozen)
    after, before = (flatten(each)[0] for each in both)
    kernels = [each for each in after if each.startswith("layers/") and each.endswith("kernel")]
    return {path: np.asarray(after[path]) - np.asarray(before[path]) for path in kernels}


def updates(out):
    """alpha / r B A of every module of a folder, by a loader that knows no patterns."""
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] and "use_rslora" not in config
    tensors = load_file(out / "adapter_model.safetensors")
    return {
        name.removesuffix(".lora_A.weight"): tensors[name.replace("lora_A", "lora_B")] @ a
        for name, a in tensors.items()
        if "lora_A" in name
    }


def expected_updates(made):
    """W' - W of every module of a run, as torch has it."""
    _, experiment, trainable = made
    place = names_of(experiment.texts.shape).place
    return {
        f"base_model.model.{place(path, layer).name.removesuffix('.weight')}": change.T
        for path, layers in changes(experiment, trainable).items()
        for layer, change in enumerate(layers)
    }


@pytest.mark.parametrize(
    ("server", "rank", "start"),
    [("vllm", 8, "vllm serve"), ("sglang", 2, "python -m sglang.launch_server --model-path")],
)
def test_servers_get_plain_lora(server, rank, start, language, tmp_path):
    """And their users the rank that a server must be started with."""
    out, expected = tmp_path / "out", expected_updates(language["rslora"])
    said, content = export(language["rslora"][0], out, "--as=peft", f"--for={server}")
    where = language["rslora"][1].config.model.name
    assert said[0] == "to load it:" and said[1].startswith(f"    {start} {where} --enable-lora ")
    assert said[1].endswith(f" out={out} --max-lora-rank {rank}")
    assert (content["rank"], content["max_lora_rank"], content["svd_error"]) == (2, rank, {})
    found = updates(out)
    assert found.keys() == expected.keys()
    for name, update in expected.items():
        np.testing.assert_allclose(found[name], update, atol=1e-5, err_msg=name)


def test_what_is_no_lora_is_cut_and_the_error_of_each_weight_said(language, tmp_path):
    out, expected = tmp_path / "out", expected_updates(language["dora"])
    said, content = export(language["dora"][0], out, "--as=peft", "--for=vllm", "--svd_rank=3")
    found, errors = updates(out), content["svd_error"]
    assert len(errors) == len(expected) == 14
    for name, update in expected.items():
        values = np.linalg.svd(update, compute_uv=False)
        error = np.linalg.norm(values[3:]) / np.linalg.norm(values)
        own = name.removeprefix("base_model.model.")
        np.testing.assert_allclose(errors[own], error, rtol=1e-3, atol=1e-5)
        assert [own, f"{errors[own]:.2%}"] in [line.split() for line in said]
        np.testing.assert_allclose(
            np.linalg.norm(found[name] - update) / np.linalg.norm(update), error, atol=1e-4
        )


def test_llama_cpp_gets_one_file(language, tmp_path):
    gguf = pytest.importorskip("gguf")
    said, content = export(language["rslora"][0], tmp_path / "out", "--as=gguf-lora")
    assert f"    llama-cli -m BASE.gguf --lora {tmp_path / 'out/adapter.gguf'}" in said
    assert (content["architecture"], content["rank"]) == ("llama", 2)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["README.md", "adapter.gguf", "export.json", "run.json"]
    reader = gguf.GGUFReader(tmp_path / "out/adapter.gguf")
    tensors = {each.name: np.array(each.data) for each in reader.tensors}
    scale = reader.get_field("adapter.lora.alpha").contents() / 2
    expected = expected_updates(language["rslora"])
    assert len(tensors) == 2 * len(expected) == 28
    found = scale * tensors["blk.1.ffn_up.weight.lora_b"] @ tensors["blk.1.ffn_up.weight.lora_a"]
    np.testing.assert_allclose(
        found, expected["base_model.model.model.layers.1.mlp.up_proj"], atol=1e-5
    )
