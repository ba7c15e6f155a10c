"""Adapters of runs by the command, in each format: others compute what the run does."""

import json

import commands
import jax
import numpy as np
import pytest
import small_language
import small_model
import text_runs
from safetensors.numpy import load_file
from test_export_command import completed

import lora_jax as lj
import variants
from experiments.exports import formats
from experiments.imports import about, adapter_source, imported_run
from experiments.imports.read_adapter import read_adapter
from experiments.runs.finished_run import open_run, read_record
from experiments.setup.load import load
from lora_jax.interchange.names import names_of
from lora_jax.models.published.load import load_classifier
from lora_jax.partition import flatten

pytestmark = pytest.mark.slow
ALL = ("layers/.*kernel",)


def export(folder, out, *flags):
    """What the command prints, and what `export.json` says."""
    line = (f"--run={folder}", f"--out={out}", *flags)
    done = commands.run("experiments.export", *line)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), json.loads((out / "export.json").read_text())


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return small_model.smoke_runs(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """Runs of a small decoder, by method."""
    root = tmp_path_factory.mktemp("language")
    places = small_language.write_places(root)
    made = {}
    for method in ("rslora", "dora"):
        config = text_runs.config(places, method, variant__rank=2, targets=ALL)
        made[method] = completed(config, root / method)
    return made


def loaded(out, experiment, pool, head):
    """The base as it is published, with the adapter of a folder, and the folder's config."""
    inputs = inputs_of(experiment)
    options = {"num_labels": 2, "pool": pool, "key": jax.random.key(7)}
    model, _ = load_classifier(experiment.config.model.name, **options)
    names = names_of(model.config, head=head)
    return lj.load_peft(out, variants.from_peft, names, *lj.from_nnx(model), *inputs)


def inputs_of(experiment):
    batch = next(experiment.batches(0))
    return [batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")]


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


def test_an_encoder_whose_head_reads_a_mean(smoke, tmp_path):
    """Of a quantised base; the head is in a file of its own."""
    config = smoke("storage=nf4", variant__rank=2)
    folder, experiment, trainable = completed(config, tmp_path / "run")
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
    assert again.trainable["params"].keys() == trained.keys() and not about.drawn(model, again)
    for path, value in trained.items():
        np.testing.assert_array_equal(again.trainable["params"][path], value)
    config = imported_run.config_of(experiment.config.plain, again)
    imported_run.experiment_of(config, model, again)  # that config makes this adapter
    first = smoke("storage=nf4", variant__rank=2, model__pool="cls")
    with pytest.raises(ValueError, match=r"its head .* reads the mean .*: --config.model.pool=mea"):
        read_adapter(source, first, model)


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


def test_runs_that_a_format_does_not_hold(language, smoke, tmp_path):
    """One line that names the flags, and nothing is written."""
    folder, *_ = completed(
        smoke("storage=nf4", variant__rank=1, variant__initialization="loftq_iter_2"),
        tmp_path / "run",
    )
    loftq = open_run(folder, read_record(folder))
    dora = open_run(language["dora"][0], read_record(language["dora"][0]))
    (tmp_path / "out").mkdir()
    for run, name, flags, said in (
        (
            dora,
            "peft",
            {"for": "vllm"},
            "--for=vllm: .*DoRA is no plain LoRA.*; --as=merged writes .* --svd_rank=R cuts",
        ),
        (dora, "gguf-lora", {}, "--as=gguf-lora: .*: DoRA is no plain LoRA.*; --as=merged writes "),
        (loftq, "peft", {"for": "sglang"}, "--for=sglang: .* is a classifier .*; --as=merged, or"),
        (loftq, "gguf-lora", {}, "--as=gguf-lora: .* is a classifier .bert., .* --as=merged"),
        (loftq, "peft", {}, "--as=peft: LoftQ has quantised another matrix .*: --as=merged"),
    ):
        with pytest.raises(ValueError, match=f"^{said}") as caught:
            formats.make(name, flags).write(run, tmp_path / "out")
        assert len(str(caught.value).splitlines()) == 1
        assert not any((tmp_path / "out").iterdir())
