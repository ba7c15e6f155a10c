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
from experiments.exports import formats
from experiments.exports.base_and_head import Place, published
from experiments.exports.formats import GgufLora, Loralib, Merged, Peft
from experiments.exports.model_card import Export, model_card, origin_command
from experiments.runs.finished_run import FinishedRun
from experiments.runs.predictions import Predictions
from experiments.setup.config import parse
from lora_jax.data.metrics import label_metrics
from lora_jax.records import run_record, seal

COMMAND = "python -m experiments.export --run=runs/a --as=merged --out=exported/a"
LABELS = np.arange(16) % 2
OUTPUTS = np.eye(2)[np.where(np.arange(16) < 4, 1 - LABELS, LABELS)]  # 12 of 16 are right


def run_of(found, folder=None, **changes):
    """The run of `completed`, with changes of its record, and perhaps with another folder."""
    place, experiment, trainable = found
    record = dataclasses.replace(run_record.read(place), **changes)
    return FinishedRun(folder or place, record, experiment, trainable, experiment.frozen)


def card(run, chosen, files="a", said=(), content=None):
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
    text = card(run_of(qlora), Merged())
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert (data.datasets, data.metrics) == (["glue"], ["accuracy"])
    assert data.tags == ["lora-jax", "lora", "nf4"]
    # The base is a folder, which the Hub knows nothing of; the record has neither of the others.
    assert data.base_model is data.language is data.license is None
    assert "base_model_relation" not in text
    first, second = data.eval_results
    found = first.task_type, first.dataset_type, first.dataset_config, first.dataset_split
    assert found == ("text-classification", "glue", "sst2", "validation")
    assert (first.metric_type, first.metric_value) == ("accuracy", 0.75)
    assert (second.metric_type, second.metric_name) == ("loss", "eval_loss")


def test_what_readers_see(qlora, monkeypatch):
    folder, experiment, _ = qlora
    record, text = run_record.read(folder), card(run_of(qlora), Merged(), said=["a line"])
    what = rows(text, "# bert, LoRA on NF4, glue/sst2")
    adapters, all_of_it = record.parameters_adapters, record.parameters_total
    said = f"{adapters + 34} of {all_of_it:,} parameters, of which {adapters} are in adapters"
    assert what | {"Its idea": None} == {
        "Base model": ["`bert`"],
        "Method": ["[LoRA](https://arxiv.org/abs/2106.09685)"],
        "Its idea": None,
        "Trained": [said],
        "Frozen weights in training": ["stored as NF4: `all-linear`"],
    }
    parts = experiment.texts.task
    assert rows(text, "## Data") == {
        "train": [f"`{parts.train.name}`", "64"],
        "validation": [f"`{parts.validation.name}`", "16"],
    }
    scores = rows(text, "## Scores")
    assert scores["**`accuracy`**"] == ["`validation`", "0.75", "0.5 to 0.9375", "16"]
    trained = rows(text, "## Training")
    assert trained["`layers/attention/query/kernel`"] == ["product", "2x16x16", "LoRA", "2", "128"]
    environment = rows(text, "## Environment")
    assert environment["jax"] == [f"`{jax.__version__}`"]
    assert environment["digest of data"] == [f"`{record.data_digest}`"]
    for line in (
        "With fewer than 100 examples it is rough.",
        r"| `(query\|value)/kernel` | `LoRA(rank=2, alpha=",
        "| `optimizer.learning_rate` | `0.002` |",
        f"```bash\n{COMMAND}\n```",
        "python -m experiments.train --config=run.json",
        "```\na line\n```",
    ):
        assert line in text
    # It was the last step's; and settings without an effect on the result are left out.
    assert "chosen by the validation part" not in text and "log_every" not in text
    monkeypatch.setattr(command_names, "installed", lambda: True)
    by_wheel = card(run_of(qlora), Merged())
    assert "\nlora-jax train --config=run.json --workdir=runs/again\n" in by_wheel
    assert "python -m experiments.train" not in by_wheel


def test_what_a_record_lacks_is_left_out(qlora, tmp_path):
    """And so is the library of a format that no library of the Hub loads."""
    lacking = {"metrics_last": {}, "metrics_best": {}, "git": None, "parameters_adapters": None}
    text = card(run_of(qlora, tmp_path, **lacking), Loralib())
    for word in ("## Scores", "commit of", "in adapters", "interval"):
        assert word not in text
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
    made = run_of(completed(config, tmp_path / "run", values, kept, **said))
    text = card(made, Merged(), "ada/lora")
    data = ModelCard(text).data
    assert (data.pipeline_tag, data.datasets) == ("text-generation", None)
    assert {each.metric_type for each in data.eval_results} == {"accuracy", "loss", "rouge"}
    scores = rows(text, "## Scores")
    assert scores["**`accuracy`**"] == ["`validation`", "1", "", "12"]
    assert scores["`rouge_l`"] == ["`validation`", "0.25", "", "5"]
    for line in (
        'AutoModelForCausalLM.from_pretrained("ada/lora")',
        "somewhat too good",
        r"`rouge-score 0.1.2\|stemmer:no`",
    ):
        assert line in text


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    root = tmp_path_factory.mktemp("language")
    config = text_runs.config(small_language.write_places(root))
    return run_of(completed(config, root / "run"))


VLLM = "vllm serve BASE --enable-lora --lora-modules"


@pytest.mark.parametrize(
    ("chosen", "files", "lines"),
    [
        (
            Peft(loader="vllm"),
            "my lora",
            "# my lora: this folder\n# BASE: the base model, model\n"
            f"{VLLM} 'my lora=my lora' --max-lora-rank 8",
        ),
        (
            Peft(loader="vllm"),
            "a=b,c",
            "# a=b,c: this folder\n# BASE: the base model, model\n"
            f'{VLLM} \'{{"name": "a=b,c", "path": "a=b,c"}}\' --max-lora-rank 8',
        ),
        (
            Peft(loader="sglang"),
            "ada/lora",
            "# BASE: the base model, model\npython -m sglang.launch_server --model-path BASE "
            "--enable-lora --lora-paths lora=ada/lora --max-lora-rank 8",
        ),
        (
            GgufLora(),
            "a",
            "# a: this folder\n# BASE.gguf is the base model, converted for llama.cpp\n"
            "llama-cli -m BASE.gguf --lora a/adapter.gguf",
        ),
    ],
)
def test_how_a_server_loads_it(chosen, files, lines, language):
    text = card(language, chosen, files, content={"max_lora_rank": 8})
    assert f"```bash\n{lines}\n```" in text


def test_the_code_for_peft_loads_what_the_base_has(qlora):
    """Its tokenizer, and the storage of its weights; this machine's own paths are on no card."""
    here = qlora[1].config.model.name
    note = f"imported from {here}, with classifier/kernel drawn anew"
    text = card(run_of(qlora, steps=0, note=note), Peft())
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
        assert str(pathlib.Path(here).parent) not in card(run_of(qlora), each)


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
    seal.write(tmp_path / name, said)
    run = run_of(qlora, tmp_path, steps=0)
    line = f"{command} --out={tmp_path.name}"
    text = card(run, Merged())
    assert f"```bash\npython -m experiments.{line}\n```" in text
    with monkeypatch.context() as patch:
        patch.setattr(command_names, "installed", lambda: True)
        assert f"```bash\nlora-jax {line}\n```" in card(run, Merged())
    for word in ("Trained |", "datasets:", "| train |", "drawn with seed", "step 0", "in training"):
        assert word not in text
    assert "The adapter was scored on the task `glue/sst2`" in text
    assert rows(text, "# bert, LoRA on NF4")["The adapter has"]
    assert rows(text, "## Scores")["**`accuracy`**"] == ["`validation`", "0.75"]
    assert "no intervals, as the run has saved no predictions" in text


def test_an_earlier_versions_origin_has_no_seal_and_a_changed_one_is_found(tmp_path):
    path = tmp_path / "combined.json"
    path.write_text(json.dumps(COMBINED))
    without_seal = origin_command(tmp_path, "run.json")
    seal.write(path, COMBINED)
    assert without_seal is not None
    assert origin_command(tmp_path, "run.json") == without_seal
    path.write_text(path.read_text().replace("runs/two", "runs/twn"))
    with pytest.raises(ValueError, match=r"combined\.json: it was changed after it was written"):
        origin_command(tmp_path, "run.json")


@pytest.mark.parametrize(
    ("here", "gguf", "said"),
    [
        (True, None, "before you share it"),
        (False, None, "names no base, which has no published name"),
        (True, "own.gguf", "load it by the code, with gguf_file"),
    ],
)
def test_files_name_a_base_only_where_it_is(here, gguf, said, qlora, tmp_path, monkeypatch):
    """A GGUF file is never named: AutoPeftModel would take it for a folder of transformers."""
    run = run_of(qlora)
    monkeypatch.setattr(formats, "find_gguf", lambda source: gguf and source / gguf)
    content = Peft().write(run, tmp_path, here=here)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    named = run.config.model.name if here and not gguf else None
    assert config["base_model_name_or_path"] == content["base_model_name_or_path"] == named
    assert said in content["said"][-1]


def test_what_a_run_started_from_is_needed_to_make_it_again(qlora):
    folder, experiment, trainable = qlora
    config = parse({**experiment.config.plain, "start_from": "/home/ada/earlier"})
    run = run_of((folder, dataclasses.replace(experiment, config=config), trainable))
    said = "and the adapter that it started from (`earlier`; `start_from` in the file"
    assert said in card(run, Merged())


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
