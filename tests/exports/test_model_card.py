"""The model card of an export, read as the Hub reads it."""

import dataclasses
import json
import pathlib
import re
import types

import jax
import numpy as np
import pytest
import small_language
import small_model
import text_runs
from completed_run import completed
from huggingface_hub import ModelCard

from experiments import command_names
from experiments.exports import card_origin
from experiments.exports.format import Format
from experiments.exports.formats.gguf_lora import GgufLora
from experiments.exports.formats.loralib import Loralib
from experiments.exports.formats.merged import Merged
from experiments.exports.formats.peft import Peft
from experiments.exports.model_card import Export, model_card
from experiments.exports.place import Place, published
from experiments.runs.finished_run import FinishedRun
from experiments.runs.predictions import Predictions
from experiments.setup.config import parse
from lora_jax.metrics import label_metrics
from lora_jax.records import run_record, seal

COMMAND = "python -m experiments.export --run=runs/a --as=merged --out=exported/a"
LABELS = np.arange(16) % 2
OUTPUTS = np.eye(2)[np.where(np.arange(16) < 4, 1 - LABELS, LABELS)]  # 12 of 16 are right


def card(found, chosen, files="a", said=(), content=None, **changes):
    folder, experiment, trainable = found
    record = dataclasses.replace(run_record.read(folder), **changes)
    run = FinishedRun(folder, record, experiment, trainable, experiment.frozen)
    place = Place(files, here=False)
    used = chosen.use(run, place, content or {})
    return model_card(run, Export(chosen, place, COMMAND, used, said))


def rows(text, heading):
    """The cells of the first table after a heading, by the first cell."""
    section = text.split(f"\n{heading}\n")[1]
    lines = re.search(r"((?:^\|.*\|$\n?)+)", section, re.MULTILINE)[1].splitlines()[2:]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return {first.strip(): [each.strip() for each in rest] for first, *rest in cells}


@pytest.fixture(scope="module")
def qlora(tmp_path_factory):
    """A classifier on a base in NF4, with the predictions of its validation part."""
    smoke = small_model.smoke_runs(tmp_path_factory.mktemp("small"))
    config = smoke("storage=nf4", variant__rank=2, targets=("(query|value)/kernel",))
    values = label_metrics.score(("accuracy", "eval_loss"), OUTPUTS, LABELS)
    kept = {"validation": Predictions(OUTPUTS, LABELS)}
    return completed(config, tmp_path_factory.mktemp("runs") / "qlora", values, kept)


def test_what_the_hub_reads(qlora):
    text = card(qlora, Merged())
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert (data.datasets, data.metrics) == (["glue"], ["accuracy"])
    assert data.tags == ["lora-jax", "lora", "nf4"]
    # The base is a folder, which the Hub knows nothing of; the record has neither of the others.
    assert data.base_model is data.language is data.license is None
    assert "base_model_relation" not in text
    first, second = data.eval_results
    assert (first.task_type, first.metric_type, first.metric_value) == (
        "text-classification",
        "accuracy",
        0.75,
    )
    assert (first.dataset_type, first.dataset_config, first.dataset_split) == (
        "glue",
        "sst2",
        "validation",
    )
    assert (second.metric_type, second.metric_name) == ("loss", "eval_loss")


def test_what_readers_see(qlora):
    folder, experiment, _ = qlora
    record, text = run_record.read(folder), card(qlora, Merged(), said=["a line"])
    heading = text.split("\n---\n")[1].splitlines()[1]
    assert heading == "# bert, LoRA on NF4, glue/sst2"
    what = rows(text, heading)
    assert what["Method"] == ["[LoRA](https://arxiv.org/abs/2106.09685)"]
    assert what["Base model"] == ["`bert`"]
    assert what["Frozen weights in training"] == ["stored as NF4: `all-linear`"]
    adapters, all_of_it = record.parameters_adapters, record.parameters_total
    said = f"{adapters + 34} of {all_of_it:,} parameters, of which {adapters} are in adapters"
    assert what["Trained"] == [said]
    data = rows(text, "## Data")
    parts = experiment.texts.task
    assert data == {
        "train": [f"`{parts.train.name}`", "64"],
        "validation": [f"`{parts.validation.name}`", "16"],
    }
    scores = rows(text, "## Scores")
    assert scores["**`accuracy`**"] == ["`validation`", "0.75", "0.5 to 0.9375", "16"]
    assert "With fewer than 100 examples it is rough." in text
    assert "chosen by the validation part" not in text  # it was the last step's
    trained = rows(text, "## Training")
    assert trained["`layers/attention/query/kernel`"] == ["product", "2x16x16", "LoRA", "2", "128"]
    assert r"| `(query\|value)/kernel` | `LoRA(rank=2, alpha=" in text
    assert "| `optimizer.learning_rate` | `0.002` |" in text and "log_every" not in text
    assert f"```bash\n{COMMAND}\n```" in text
    assert "--config=run.json" in text and "```\na line\n```" in text
    environment = rows(text, "## Environment")
    assert environment["jax"] == [f"`{jax.__version__}`"]
    assert environment["digest of data"] == [f"`{record.data_digest}`"]


def test_a_card_made_by_the_wheel_has_its_command(qlora, monkeypatch):
    monkeypatch.setattr(command_names, "installed", lambda: True)
    text = card(qlora, Merged())
    assert "\nlora-jax train --config=run.json --workdir=runs/again\n" in text
    assert "python -m experiments.train" not in text


def test_what_a_record_lacks_is_left_out(qlora, tmp_path):
    """And so is what a format has nothing to say of."""
    folder, experiment, trainable = qlora
    record = run_record.read(folder)
    less = dataclasses.replace(
        record, metrics_last={}, metrics_best={}, git=None, parameters_adapters=None
    )
    run = FinishedRun(tmp_path, less, experiment, trainable, experiment.frozen)
    text = model_card(run, Export(Format(), Place("a", here=False), COMMAND))
    assert "## Scores" not in text and "## Use" not in text and "commit of" not in text
    assert "in adapters" not in text and "interval" not in text
    data = ModelCard(text).data
    assert data.eval_results is data.library_name is data.metrics is None


def test_the_card_of_a_language_model(tmp_path):
    """With options to choose from, the answer is in what was saved; its texts have no interval."""
    places = small_language.write_places(tmp_path)
    labels = np.arange(12) % 4
    outputs = np.log(np.full((12, 4), 0.1) + 0.6 * np.eye(4)[labels])
    values = {**label_metrics.score(("accuracy", "eval_loss"), outputs, labels), "rouge_l": 0.25}
    kept = {"validation": Predictions(outputs, labels)}
    config = text_runs.config(places, train__select="best", generate__scored=5)
    said = {"signatures": {"rouge_l": "rouge-score 0.1.2|stemmer:no"}}
    made = completed(config, tmp_path / "run", values, kept, **said)
    text = card(made, Merged(), "ada/lora")
    data = ModelCard(text).data
    assert (data.pipeline_tag, data.datasets) == ("text-generation", None)
    assert {each.metric_type for each in data.eval_results} == {"accuracy", "loss", "rouge"}
    assert 'AutoModelForCausalLM.from_pretrained("ada/lora")' in text
    assert "somewhat too good" in text
    scores = rows(text, "## Scores")
    assert scores["**`accuracy`**"] == ["`validation`", "1", "", "12"]
    assert scores["`rouge_l`"] == ["`validation`", "0.25", "", "5"]
    assert r"`rouge-score 0.1.2\|stemmer:no`" in text
    served = {"max_lora_rank": 8}
    text = card(made, Peft(loader="vllm"), "my lora", content=served)
    line = "vllm serve BASE --enable-lora --lora-modules 'my lora=my lora' --max-lora-rank 8"
    said = f"```bash\n# my lora: this folder\n# BASE: the base model, model\n{line}\n```"
    assert said in text
    line = '--lora-modules \'{"name": "a=b,c", "path": "a=b,c"}\' --max-lora-rank 8'
    assert line in card(made, Peft(loader="vllm"), "a=b,c", content=served)
    line = "--model-path BASE --enable-lora --lora-paths lora=ada/lora --max-lora-rank 8"
    assert line in card(made, Peft(loader="sglang"), "ada/lora", content=served)
    line = (
        "# BASE.gguf is the base model, converted for llama.cpp\nllama-cli -m BASE.gguf --lora a/"
    )
    assert f"```bash\n# a: this folder\n{line}adapter.gguf\n```" in card(made, GgufLora())


def test_the_code_for_peft_loads_what_the_base_has(qlora):
    """Its tokenizer, and the storage of its weights; this machine's own paths are on no card."""
    here = qlora[1].config.model.name
    note = f"imported from {here}, with classifier/kernel drawn anew"
    text = card(qlora, Peft(), steps=0, note=note)
    assert (
        "It was not trained there: imported from bert, with classifier/kernel drawn anew." in text
    )
    code = text.split("```python\n")[1].split("\n```")[0]
    assert code.splitlines() == [
        "# a: this folder",
        "# BASE: the base model, bert",
        "from peft import PeftModel",
        "from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig",
        "",
        "tokenizer = AutoTokenizer.from_pretrained('BASE')",
        "base = AutoModel.from_pretrained('BASE', dtype='float32',",
        "    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4'))",
        "model = PeftModel.from_pretrained(base, 'a')",
    ]
    for each in (Peft(), Merged(), Loralib()):
        assert str(pathlib.Path(here).parent) not in card(qlora, each)


IMPORTED = {
    "source": "ada/lora@main",
    "commit": "0123abcd",
    "sha256": {"adapter_config.json": "", "adapter_model.safetensors": ""},
    "adapter_config": {"lora_alpha": 4},
    "enable_lora": None,
}
COMBINED = {
    "by": "sum",
    "runs": [{"run": "/home/ada/one", "weight": 2.0}, {"run": "runs/two", "weight": -1.0}],
    "rank": 3,
    "density": None,
    "seed": None,
    "kept": ["classifier/.*"],
}


@pytest.mark.parametrize(
    ("name", "said", "command"),
    [
        ("imported.json", IMPORTED, "import_adapter --from=ada/lora@0123abcd --config=run.json"),
        (
            "combined.json",
            COMBINED,
            "combine --runs=one,runs/two --weights=2.0,-1.0 --by=sum --rank=3 "
            "'--keep=classifier/.*'",
        ),
    ],
)
def test_an_adapter_that_was_not_trained_here(qlora, tmp_path, monkeypatch, name, said, command):
    """The card says how it was made, and nothing of a training."""
    folder, experiment, trainable = qlora
    (tmp_path / name).write_text(json.dumps(said))
    record = dataclasses.replace(run_record.read(folder), steps=0)
    run = FinishedRun(tmp_path, record, experiment, trainable, experiment.frozen)
    export = Export(Merged(), Place("a", here=False), COMMAND)
    text = model_card(run, export)
    line = f"{command} --out={tmp_path.name}"
    assert f"```bash\npython -m experiments.{line}\n```" in text
    with monkeypatch.context() as patch:
        patch.setattr(command_names, "installed", lambda: True)
        assert f"```bash\nlora-jax {line}\n```" in model_card(run, export)
    for word in ("Trained |", "datasets:", "| train |", "drawn with seed", "step 0", "in training"):
        assert word not in text
    assert "The adapter was scored on the task `glue/sst2`" in text
    assert rows(text, "# bert, LoRA on NF4")["The adapter has"]
    assert rows(text, "## Scores")["**`accuracy`**"] == ["`validation`", "0.75"]
    assert "no intervals, as the run has saved no predictions" in text


def test_a_changed_origin_is_found(tmp_path):
    path = tmp_path / "combined.json"
    seal.write(path, COMBINED)
    line = "--runs=one,runs/two --weights=2.0,-1.0 --by=sum --rank=3 '--keep=classifier/.*'"
    said = f"python -m experiments.combine {line} --out={tmp_path.name}"
    assert card_origin.command(tmp_path, "run.json") == said
    path.write_text(path.read_text().replace("runs/two", "runs/twn"))
    with pytest.raises(ValueError, match=r"combined\.json: it was changed after it was written"):
        card_origin.command(tmp_path, "run.json")


def test_files_that_leave_this_machine_name_no_folder_of_it(qlora, tmp_path):
    folder, experiment, trainable = qlora
    record, base = run_record.read(folder), experiment.config.model.name
    run = FinishedRun(folder, record, experiment, trainable, experiment.frozen)
    for here, named, said in (
        (True, base, "before you share it"),
        (False, None, "names no base, which has no published name"),
    ):
        out = tmp_path / str(here)
        out.mkdir()
        content = Peft().write(run, out, here=here)
        config = json.loads((out / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == content["base_model_name_or_path"] == named
        assert said in content["said"][-1]


def test_a_base_in_a_gguf_file_is_not_named(qlora, tmp_path, monkeypatch):
    """AutoPeftModel would take the name for a folder of transformers."""
    folder, experiment, trainable = qlora
    run = FinishedRun(folder, run_record.read(folder), experiment, trainable, experiment.frozen)
    monkeypatch.setattr(f"{Peft.__module__}.find_gguf", lambda source: source / "own.gguf")
    content = Peft().write(run, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is content["base_model_name_or_path"] is None
    assert content["said"][-1].endswith("load it by the code, with gguf_file")


def test_what_a_run_started_from_is_needed_to_make_it_again(qlora):
    folder, experiment, trainable = qlora
    config = parse({**experiment.config.plain, "start_from": "/home/ada/earlier"})
    text = card((folder, dataclasses.replace(experiment, config=config), trainable), Merged())
    assert "and the adapter that it started from (`earlier`; `start_from` in the file" in text


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
        ("/cache/hub/models--ada--bert-1.5/snapshots/0123abcd", "ada/bert-1.5"),
        ("/models/bert", None),
    ],
)
def test_the_published_name_of_a_base(name, wanted):
    model = types.SimpleNamespace(name=name)
    run = types.SimpleNamespace(config=types.SimpleNamespace(model=model))
    assert published(run) == wanted
