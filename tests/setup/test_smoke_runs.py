"""Every paper's config runs its smoke from a bare checkout, beside the published numbers."""

import csv
import importlib
import io

import pytest

from experiments.reports.tables.config_tables import render_table
from experiments.runs import run
from experiments.setup.config import fill, parse
from lora_jax import data
from lora_jax.models.published import tiny_models
from lora_jax.models.published.location import locate

CELLS = {
    "adalora_table1": "model=deberta_v3_base,task=cola",
    "domain_shift": "model=roberta_base,stage=source",
    "dora_table1": "model=llama_7b,method=dora",
    "few_shot": "examples=1000",
    "glue": "task=stsb",
    "llama2_70b": "",
    "lora_plus_ratio": "model=roberta_base,task=mnli",
    "lora_table18": "model=roberta_base,rank=256",
    "lora_table2": "model=roberta_base,task=cola",
    "lora_table3": "model=gpt2_medium,method=lora",
    "lora_table6": "model=roberta_base,task=rte",
    "pissa_nlg": "model=mistral_7b,method=lora",
    "pissa_table3": "model=deberta_v3_base,method=pissa,task=cola",
    "qlora_llama": "model=llama_7b,method=lora_nf4_double",
    "qlora_table3": "model=roberta_large,method=lora_int8,task=mrpc",
    "targets": "model=roberta_large,targets=all_last_half",
    "vera_table2": "model=roberta_base,task=cola",
}
"""A cell of each config. The last half of RoBERTa large begins beyond a tiny model's layers."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An empty cache, and nothing that could be downloaded."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        changed.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("bare", "standard_promotion")
@pytest.mark.parametrize("name", CELLS)
def test_a_smoke_runs_from_a_bare_checkout_and_has_its_table(name, tmp_path):
    module = importlib.import_module(f"configs.{name}")
    config = parse(fill(module.get_config(f"{CELLS[name]},size=smoke").to_dict()))
    record = run.run(config, tmp_path, audit=False)
    assert (record.status, record.steps) == ("completed", 4)
    if not hasattr(module, "TABLE"):
        return
    text = render_table(name, tmp_path, "markdown", size="smoke").replace("\\", "")
    said = f"{config.study.model}: our runs are of {config.model.name} on generated data."
    assert said in text
    rows = list(csv.DictReader(io.StringIO(render_table(name, tmp_path, "csv", size="smoke"))))
    place = {"model": config.study.model, "row": config.study.row}
    own = [row for row in rows if place.items() <= row.items()]
    ours = {row["ours"] for row in own} - {""}
    assert ours
    if not record.samples:  # the tables of texts have tests of their own
        assert ours & {f"{100 * value}" for value in record.metrics_last.values()}
    if module.TABLE["published"]:
        theirs = rows if name in ("lora_table6", "lora_table18") else own  # GPT's stand alone
        assert any(row["published"] for row in theirs)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_a_tiny_model_is_made_once_with_a_tokenizer(name):
    folder = locate(name)
    assert locate(name) == folder and folder.is_dir()
    backend = data.load_tokenizer(folder).backend
    ids = backend.encode("red sky 17", add_special_tokens=False).ids
    assert len(set(ids)) > 5 and max(ids) < tiny_models.MODELS[name]["vocab_size"]
    assert [each.name for each in folder.parent.iterdir() if each.name.startswith(".")] == []


def test_an_unknown_tiny_model_is_named():
    with pytest.raises(ValueError, match=r"unknown model 'tiny-robeta'.*tiny-roberta"):
        locate("tiny-robeta")


def test_generated_data_are_for_smoke_runs():
    module = importlib.import_module("configs.lora_table2")
    made = module.get_config("source=demo,size=smoke,task=rte")
    assert (made.data.source, made.model.name) == ("demo", "tiny-minilm")
    given = module.get_config("source=tsv,folder=glue_data,size=smoke")
    assert (given.data.source, given.model.name) == ("tsv", "minilm")
    with pytest.raises(ValueError, match=r"source=demo: .*add size=smoke"):
        module.get_config("source=demo")
