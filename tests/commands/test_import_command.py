"""Adapters of PEFT folders become runs by the command, which score as those that were exported."""

import dataclasses
import json
import shlex
import shutil

import commands
import numpy as np
import pytest
import small_language
import small_model
import text_runs
from safetensors.numpy import load_file, save_file

import lora_jax as lj
from experiments.imports import adapter_source, imported_run
from experiments.imports.adapter_source import read_adapter
from experiments.runs import adapter_as_run
from experiments.runs.finished_run import open_run, read_record
from experiments.setup.config import parse
from experiments.setup.config_flags import read_config
from experiments.setup.experiment import build
from experiments.setup.load import load
from lora_jax.contract.toys import noisy
from lora_jax.interchange.names import names_of
from lora_jax.partition import flatten
from lora_jax.records import run_record

pytestmark = pytest.mark.slow
WEIGHTS = "adapter_model.safetensors"
TARGETS = (
    ("query/kernel", {"layers": (0, 1, None)}),
    ("query/kernel", {"rank": 3, "alpha": 6.0, "layers": (1, 2, None)}),
    "up/kernel",
)


def made(config, folder):
    """A run whose adapter is random, in the place of training, and its PEFT folder."""
    run = build(config)
    trainable = noisy(run.trainable, 0, 0.3)
    for path, constants in run.frozen.constants.items():
        if "mask" in constants:  # rows beyond a layer's rank do nothing, and are in no file
            own, mask = trainable["adapters"][path], constants["mask"][..., None]
            trainable["adapters"][path] = {name: x * mask for name, x in own.items()}
    run = dataclasses.replace(run, trainable=trainable)
    folder.mkdir()
    record = adapter_as_run.write(folder, run, "made.json", {}, "")
    names, base = names_of(run.texts.shape), config.model.name
    lj.save_peft(folder / "peft", run.trainable, run.frozen, names, base_model=base)
    return run, record


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("imports")


@pytest.fixture(scope="module")
def run(root):
    """The run and its record, in `run`."""
    smoke = small_model.smoke_runs(root / "small")
    return made(smoke(targets=TARGETS, variant__rank=2), root / "run")


def flags_of(config):
    """Flags of a config with the model and data of another."""
    settings = {"model.name": config.model.name, "train.batch_size": config.train.batch_size}
    data = config.plain["data"]
    for name in ("name", "source", "folder", "validation", "train", "max_length", "buckets"):
        settings[f"data.{name}"] = data[name]
    start = "--config=configs/quickstart.py:size=smoke"
    return [start, *(f"--config.{name}={value}" for name, value in settings.items())]


def by_command(source, out, *line):
    return commands.run("experiments.import_adapter", f"--from={source}", f"--out={out}", *line)


def assert_same(found, expected, rtol=0.0):
    expected = flatten(expected)[0]
    assert flatten(found)[0].keys() == expected.keys()
    for path, value in flatten(found)[0].items():
        np.testing.assert_allclose(value, expected[path], rtol=rtol, err_msg=path)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_an_exported_run_is_what_it_was(run, root):
    experiment, record = run
    source, out, flags = root / "run/peft", root / "imported", flags_of(experiment.config)
    ended = by_command(source, out, *flags)
    assert ended.returncode == 0, ended.stderr
    assert "warning" not in ended.stderr
    assert "layers/attention/query/kernel  lora     3     1\n" in ended.stdout
    found = read_record(out)
    assert found.metrics_last == pytest.approx(record.metrics_last, rel=1e-6)
    assert found.metrics_last["accuracy"] == record.metrics_last["accuracy"]
    assert found.note == f"imported from {source}"
    again = open_run(out, found)
    assert_same(again.trainable, experiment.trainable, rtol=3e-7)  # b goes through a scale
    content = json.loads((out / "imported.json").read_text(encoding="utf-8"))
    assert content["base_model_name_or_path"] == experiment.config.model.name
    assert content["sha256"].keys() == {"adapter_config.json", WEIGHTS}

    *_, hint = ended.stdout.splitlines()
    start = shlex.split(hint.removeprefix("to continue training: python -m experiments.train "))
    assert start[1:] == [f"--config.start_from={out}", f"--workdir={out}_trained"]
    begun = build(parse(read_config(start[:2]).to_dict()))
    assert_same(begun.trainable, again.trainable)
    assert begun.loop.steps == 8 and begun.config.variant == again.config.variant

    line = [f"--runs={out},{root / 'run'}", "--weights=1,-1", f"--out={root / 'nothing'}"]
    combined = commands.run("experiments.combine", *line)
    assert combined.returncode == 0, combined.stderr
    base = build(parse(experiment.config.plain))
    nothing = open_run(root / "nothing", read_record(root / "nothing"))
    zero = nothing.experiment.adapted.merge(nothing.trainable, nothing.frozen)
    for path, value in flatten(base.adapted.disable(base.trainable, base.frozen))[0].items():
        np.testing.assert_allclose(flatten(zero)[0][path], value, atol=1e-5, err_msg=path)


def test_an_encoders_adapter_gets_a_new_head(run, root):
    """Of a model without a head, whose names have no prefix; another base is said, and a task."""
    experiment, _ = run
    folder = shutil.copytree(root / "run/peft", root / "headless")
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "their/model", "task_type": "TOKEN_CLS"}
    text = json.dumps({**config, "modules_to_save": None})
    text = text.replace("bert\\\\.", "").replace("bert.", "")
    (folder / "adapter_config.json").write_text(text)
    tensors = load_file(folder / WEIGHTS)
    kept = {n.replace("bert.", ""): x for n, x in tensors.items() if "classifier" not in n}
    save_file(kept, folder / WEIGHTS)
    model = shutil.copytree(experiment.config.model.name, root / "encoder")
    whole = load_file(model / "model.safetensors")
    whole = {name: x for name, x in whole.items() if "classifier" not in name}
    save_file(whole, model / "model.safetensors", metadata={"format": "pt"})
    flags = [*flags_of(experiment.config), f"--config.model.name={model}"]
    ended = by_command(folder, root / "with_head", *flags)
    assert ended.returncode == 0, ended.stderr
    new = "has classifier/kernel, classifier/bias: they are drawn from config.seed 0"
    warnings = [line for line in ended.stderr.splitlines() if line.startswith("warning: ")]
    assert "base model is 'their/model', and config.model.name is" in warnings[0]
    task = (
        "warning: the adapter belongs to a 'TOKEN_CLS' model, but this config describes a SEQ_CLS "
        "model"
    )
    assert warnings[1] == task
    assert warnings[2].startswith(f"warning: neither {folder} nor {model} {new}")
    again = open_run(root / "with_head", read_record(root / "with_head"))
    assert not again.trainable["params"] and not again.config.also_train
    assert_same(again.trainable["adapters"], experiment.trainable["adapters"], rtol=3e-7)


def again_as_run(source, config, folder):
    """The experiment of an imported adapter, and the record of its run."""
    model = load(config)
    found = read_adapter(source, config, model)
    made = imported_run.experiment_of(imported_run.config_of(config.plain, found), model, found)
    return made, adapter_as_run.write(folder, made, imported_run.FILE, {}, "")


def test_a_file_of_loralib(run, root):
    """It scores as the run that it was made of, with ranks filled up to the highest."""
    experiment, record = run
    config, file = experiment.config, root / "lora.safetensors"
    lj.save_loralib(file, experiment.trainable, experiment.frozen, names_of(experiment.texts.shape))
    source = adapter_source.find(str(file))
    _, written = again_as_run(source, config, root / "loralib")
    assert written.metrics_last == pytest.approx(record.metrics_last, rel=1e-6)
    assert source.digests().keys() == {"lora.safetensors"}
    with pytest.raises(ValueError, match=r"lora_alpha is 3 in its header, not 5\.0"):
        read_adapter(source, config, load(config), alpha=5.0)


def test_a_language_models_adapter_on_a_quantised_base(root):
    places = small_language.write_places(root / "language")
    config = text_runs.config(places, "qlora", generate__scored=2, generate__metrics=("chrf",))
    experiment, record = made(config, root / "qlora")
    source = adapter_source.find(str(root / "qlora/peft"))
    again, written = again_as_run(source, config, root / "decoder")
    assert_same(again.trainable, experiment.trainable, rtol=3e-7)
    assert written.metrics_last == pytest.approx(record.metrics_last, rel=1e-6)
    assert written.metrics_last["chrf"] == record.metrics_last["chrf"]


def llama(folder):
    names = [f"base_model.model.model.layers.0.self_attn.q_proj.lora_{n}.weight" for n in "AB"]
    shapes = [(2, 16), (16, 2)]
    save_file({n: np.zeros(s, "f") for n, s in zip(names, shapes, strict=True)}, folder / WEIGHTS)


def other_vocabulary(folder):
    name = "base_model.model.bert.embeddings.word_embeddings.lora_embedding"
    tensors = {f"{name}_A": np.zeros((2, 999), "f"), f"{name}_B": np.zeros((16, 2), "f")}
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["word_embeddings"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def truncated(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-50])


@pytest.mark.parametrize(
    ("change", "flag", "said"),
    [
        (llama, "", "layers.0.self_attn.q_proj.lora_A.weight' belongs to no module of this model"),
        (
            other_vocabulary,
            "",
            "the file has (2, 999), this model and the config ask for (2, 30522)",
        ),
        (truncated, "", "is corrupt or truncated"),
        (None, "--config.variant.rank=3", "--config.variant.rank comes from the adapter: leave it"),
        (None, "--alpha=2", "--alpha is for a file of loralib, and --from="),
        (None, "--out={run}", "/run exists; name a new folder"),
    ],
)
def test_mistakes_end_with_one_line(run, root, change, flag, said):
    folder = shutil.copytree(root / "run/peft", root / f"wrong_{len(said)}")
    if change is not None:
        change(folder)
    line = [*flags_of(run[0].config), flag.format(run=root / "run")]
    ended = by_command(folder, root / "never", *filter(None, line))
    lines = [each for each in ended.stderr.splitlines() if each.startswith("error: ")]
    assert ended.returncode == 1 and len(lines) == 1 and said in lines[0]
    assert not [path.name for path in root.iterdir() if "never" in path.name]
    assert run_record.read(root / "run") == run[1]
