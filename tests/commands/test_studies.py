"""Whole runs of the papers' configs, on tiny models and tiny data in the official layout."""

import json
import os
import shutil
import signal
from pathlib import Path

import chex
import jax
import numpy as np
import official
import pytest
from flax import nnx

from configs import adalora_table1, domain_shift, lora_table2, own_data, targets
from configs.studies import against_lora
from experiments import report
from experiments.analysis import recorded_runs
from experiments.reports.document import Document
from experiments.reports.tables.config_tables import render_table
from experiments.runs import predictions, run, training
from experiments.runs.interruption import between_programs
from experiments.setup.config import parse
from experiments.setup.experiment import build
from experiments.studies.protocol import Protocol, Rates, Tuning
from experiments.studies.training import Cell, Trainer
from experiments.sweeps import jobs
from lora_jax import data
from lora_jax.data.metrics import label_metrics
from lora_jax.files import tree_file
from lora_jax.models import families
from lora_jax.models.published.export import export_model
from lora_jax.models.published.location import locate
from lora_jax.partition import flatten
from lora_jax.records import run_record

pytestmark = [
    pytest.mark.usefixtures("standard_promotion"),
]
ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
SIZES = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 12}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True}
DEBERTA |= {"position_buckets": 4, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
DEBERTA |= {"type_vocab_size": 0}


def model(folder, **content):
    """A random model's folder, without its tokenizer."""
    config = families.read(content)
    classifier = families.find(config.model_type).model
    made = classifier(config, 2, "cls", rngs=nnx.Rngs(0))
    export_model(nnx.state(made), config, folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = model(tmp_path_factory.mktemp("models") / "bert", model_type="bert", **SIZES)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(locate("minilm") / name, folder)
    return str(folder)


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    """A few sentences of each task."""
    parts = official.cola, official.rte, official.mnli, official.mrpc, official.stsb
    parts += official.sst2, official.qqp
    files = {name: content for part in parts for name, content in part().items()}
    return str(official.write(tmp_path_factory.mktemp("glue"), files))


def config_of(module, arg, glue, name, **changes):
    config = module.get_config(f"{arg},size=smoke,source=tsv,folder={glue}")
    changes = {"model__name": name, "data__train": 0, "data__buckets": 1, **changes}
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return parse(config.to_dict())


@pytest.fixture(scope="module")
def mnli(bert, glue, tmp_path_factory):
    """The folder of a run on MNLI."""
    config = config_of(lora_table2, "model=minilm,task=mnli", glue, bert)
    folder = tmp_path_factory.mktemp("runs") / "mnli"
    with jax.numpy_dtype_promotion("standard"):
        run.run(config, folder)
    return folder


@pytest.mark.slow
def test_mrpc_begins_from_the_adapter_of_mnli(bert, glue, mnli):
    record = run_record.read(mnli)
    assert record.metric == "accuracy"
    names = {"accuracy", "accuracy_mismatched", "accuracy_m_mm", "eval_loss"}
    assert names < record.metrics_last.keys()

    arg = "model=minilm,task=mrpc"
    config = config_of(lora_table2, arg, glue, bert, start_from=str(mnli))
    with pytest.warns(UserWarning, match=r"\[8, 3\] for 'classifier/kernel', here \[8, 2\]"):
        second = build(config)
    first, _ = tree_file.load_tree(mnli)
    chex.assert_trees_all_equal(second.trainable["adapters"], first["adapters"])
    assert second.trainable["params"]["classifier/kernel"].shape == (8, 2)
    assert first["params"]["classifier/kernel"].shape == (8, 3)
    with pytest.warns(
        UserWarning, match="a head for other classes; this run begins with a new one"
    ):
        record = run.run(second.config, mnli.parent / "mrpc")
    head = second.trainable["params"]["classifier/kernel"].size + 2
    assert record.parameters_adapters == record.parameters_trained - head

    shown = render_table("lora_table2", mnli.parent, "markdown", model="minilm", size="smoke")
    assert f"{100 * record.metrics_last['accuracy']:.1f} (1)" in shown


@pytest.mark.slow
def test_outputs_of_every_example_give_the_scores_again(glue, mnli):
    record, found = run_record.read(mnli), predictions.read(mnli)
    task = data.load_task("glue/mnli", "tsv", glue)
    parts = {"validation": task.validation, **task.extra, **task.unlabelled}
    assert found.keys() == parts.keys()
    for name, part in parts.items():
        assert len(found[name].outputs) == len(part)
        np.testing.assert_equal(found[name].labels, part.labels)
    labelled = {n: each.outputs for n, each in found.items() if each.labels is not None}
    again = label_metrics.score_parts(task, labelled)
    for name, value in record.metrics_last.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_adalora_on_deberta(glue, tmp_path):
    """As its table has it; the count is that of the final budget."""
    vocabulary = FIXTURES / "deberta_tokenizer"
    folder = model(tmp_path / "model", model_type="deberta-v2", **SIZES, **DEBERTA)
    for path in vocabulary.iterdir():
        shutil.copy(path, folder)
    arg = "model=deberta_v3_base,task=stsb,method=adalora_b144"
    config = config_of(adalora_table1, arg, glue, str(folder), train__batch_size=1)
    record = run.run(config, tmp_path / "run")
    assert record.metric == "pearson" and "pearson_spearman" in record.metrics_last
    assert record.ranks is not None
    shapes = {"query": (8, 8), "key": (8, 8), "value": (8, 8), "output": (8, 8)}
    shapes |= {"up": (8, 12), "down": (12, 8)}
    counted = 0
    for path, ranks in record.ranks.items():
        counted += sum(ranks) * sum(shapes[path.split("/")[-2]])
    assert record.parameters_adapters == counted
    assert sum(sum(ranks) for ranks in record.ranks.values()) == 2 * 6 * 4


@pytest.mark.parametrize(
    "name, layers", [("all_last_half", [2, 3]), ("all_every_other", [0, 2]), ("all", [0, 1, 2, 3])]
)
def test_targets_of_some_layers(name, layers, bert, glue, monkeypatch):
    monkeypatch.setitem(targets.common_tasks.LAYERS, "minilm", SIZES["num_hidden_layers"])
    config = config_of(targets, f"targets={name},task=cola,rank=1", glue, bert)
    experiment = build(config)
    moved = jax.tree.map(lambda x: np.asarray(x) + 1, experiment.trainable)
    merged, _ = flatten(jax.jit(experiment.adapted.merge)(moved, experiment.frozen))
    assert len(moved["adapters"]) == 6
    for path in moved["adapters"]:
        change = np.abs(merged[path] - experiment.frozen.base[path]).sum((1, 2))
        np.testing.assert_array_equal(np.flatnonzero(change), layers, err_msg=path)


def test_a_second_domain_has_as_many_classes(bert, glue):
    config = config_of(domain_shift, "pair=mrpc_qqp", glue, bert, data__extra="glue/mnli")
    with pytest.raises(ValueError, match="'glue/mrpc' 2 classes and 'glue/mnli' 3 classes"):
        build(config)


@pytest.mark.slow
def test_a_second_domain_is_evaluated_as_well(bert, glue, tmp_path):
    """RTE and an equal copy of it as the other domain: equal scores."""
    arg = "pair=rte_qnli,stage=source"
    config = config_of(domain_shift, arg, glue, bert, data__extra="glue/rte")
    scores = run.run(config, tmp_path).metrics_last
    assert scores["accuracy_extra"] == scores["accuracy"]
    assert scores["eval_loss_extra"] == scores["eval_loss"]


@pytest.mark.slow
def test_data_of_one_s_own_on_two_domains(bert, tmp_path):
    """Train on one, go on with the other: each is scored on both, and the table shows the run."""
    for name in ("news", "films"):
        rows = [{"t": f"{name} {i}", "y": ["bad", "good"][i % 2]} for i in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(train, extra, **changes):
        arg = f"train={train}.jsonl,validation={train}.jsonl,extra={extra}.jsonl,text=t,label=y"
        made = own_data.get_config(f"{arg},test={extra}.jsonl,folder={tmp_path},size=smoke")
        made.update({"model": {"name": bert}, "data": {"buckets": 1}, **changes})
        made.update({"train": {"batch_size": 2}})
        return parse(made.to_dict())

    first = run.run(config("news", "films"), tmp_path / "runs" / "first")
    changes = {"start_from": str(tmp_path / "runs" / "first"), "seed": 1}
    second = run.run(config("films", "news", **changes), tmp_path / "second")
    assert first.metrics_last.keys() == second.metrics_last.keys()
    assert {"accuracy", "f1", "accuracy_extra", "f1_extra"} < first.metrics_last.keys()
    found = predictions.read(tmp_path / "second")
    np.testing.assert_array_equal(found["test"].outputs, found["extra"].outputs)
    assert found["test"].labels is None and len(found["extra"].labels) == 8
    assert predictions.read(tmp_path) == {}
    shown = render_table("own_data", tmp_path / "runs", "csv", size="smoke")
    assert f"{100 * first.metrics_last['accuracy']}" in shown
    again = config("news", "films", data={"extra": "films"})
    with pytest.raises(ValueError, match=r"it is a file, data\.files\.extra"):
        build(again)


@pytest.mark.slow
def test_tuning_never_sees_the_development_set(bert, glue, tmp_path, monkeypatch):
    """Each rate on held-out sentences, then the best one's seeds on the development set."""
    protocol = Protocol(
        rows=("lora",),
        columns=("cola",),
        reference="lora",
        rates=Rates(per_decade=2, around=1, most_more=0),
        tuning=Tuning(held_out=2, seeds=(9,)),
        seeds=(0, 1),
        margin=1.0,
    )
    seen, trained = [], []
    true_train, true_fit = jobs.train, training.fit

    def watched(configs, *more):
        seen.extend((build(config).texts.task, config) for config in configs)
        return true_train(configs, *more)

    def counted(program, states, trials, **more):
        trained.append(len(trials))
        return true_fit(program, states, trials, **more)

    monkeypatch.setattr(jobs, "train", watched)
    monkeypatch.setattr(training, "fit", counted)

    def config(**changes):
        small = {"data__train": 2, "targets": ("query/kernel",), **changes}
        return config_of(against_lora, "task=cola,row=lora", glue, bert, **small)

    cell = Cell("cola", "lora", config, 1e-3)
    with pytest.raises(SystemExit, match="75"), between_programs() as begin:
        os.kill(os.getpid(), signal.SIGTERM)  # at a time when nothing trains
        Trainer(tmp_path, protocol, begin=begin).task([cell])
    assert not seen
    trainer = Trainer(tmp_path, protocol, adapters=False)
    trainer.task([cell])
    development = set(data.load_task("glue/cola", "tsv", glue).validation.texts)
    tuning, final = seen[:3], seen[3:]
    for task, each in tuning:
        assert each.seed == 9 and len(task.validation) == 2
        assert not development & {*task.validation.texts, *task.train.texts}
    scores = {}
    for rate in (3.2e-4, 1e-3, 3.2e-3):
        path = tmp_path / f"cola/tuning/lora/{rate:g}/9/record.json"
        scores[rate] = json.loads(path.read_text())["metrics_last"]["matthews"]
    best = max(sorted(scores), key=scores.__getitem__)
    assert [(c.seed, c.data.draw, c.optimizer.learning_rate) for _, c in final] == [
        (0, 0, best),
        (1, 1, best),
    ]
    assert all(set(task.validation.texts) == development for task, _ in final)
    assert len({tuple(task.train.texts) for task, _ in final}) == 2  # each seed draws its own
    assert trained == [3, 2]  # two programs
    assert not list(tmp_path.rglob("*.safetensors"))
    trainer.task([cell])  # all are there: nothing trains again
    assert trained == [3, 2]
    other = Cell("cola", "lora", lambda **each: config(**each, study__registration="x"), 1e-3)
    with pytest.raises(ValueError, match=r"another configuration: config\.study\.registration is"):
        trainer.task([other])
    made, *_ = report.compared(tmp_path, recorded_runs.find(tmp_path), None, "smoke", (), [])
    told = Document(made, resamples=100).render("markdown")
    assert "| chosen on | lead | chosen in | settings tried |" in told
    assert "resamples at the median of 1 cell" in told and "were not kept" not in told
    shown = render_table("against_lora", tmp_path, "markdown", size="smoke")
    assert "3 runs left out: validated on a part of the training examples" in shown
    assert "(2)" in shown
