"""A table leaves out or refuses runs that do not belong in it, and names them."""

import json
import re
import shutil
import types

import pytest
from fake_records import write
from rendered_tables import markdown, notes

from experiments.analysis import collect_runs
from experiments.analysis.recorded_runs import find
from experiments.reports.tables import config_tables
from lora_jax.files.json_text import config_digest
from lora_jax.records import seal


def test_settings_that_are_not_the_config_s_are_named(base):
    results, _ = base
    assert "not the config's" not in notes("lora_table2", results)
    shutil.rmtree(results / "cola")
    changes = {"optimizer.learning_rate": 1e-3, "train.epochs": 3, "data.folder": "elsewhere"}
    for seed in range(2):
        arg = f"model=roberta_base,task=cola,seed={seed}"
        folder = results / "cola" / str(seed)
        write(folder, "lora_table2", arg, {"matthews": 0.6}, parameters=1, changes=changes)
    said = "roberta_base, lora, cola: our runs are not the config's: optimizer.learning_rate is "
    said += "0.001 in place of 0.0004; train.epochs is 3 in place of 80."
    assert said in notes("lora_table2", results)


def test_copies_are_one_run_and_contradictions_an_error(base):
    results, _ = base
    before = markdown("lora_table2", results)
    shutil.copytree(results / "sst2" / "0", results / "moved" / "0")
    assert markdown("lora_table2", results) == before
    assert "1 run left out: copies" in notes("lora_table2", results)
    arg = "model=roberta_base,task=sst2,seed=0"
    shutil.rmtree(results / "moved")
    write(results / "moved", "lora_table2", arg, {"accuracy": 0.5}, status="failed", note="killed")
    assert markdown("lora_table2", results) == before
    shutil.rmtree(results / "moved")
    write(results / "moved", "lora_table2", arg, {"accuracy": 0.5})
    with pytest.raises(ValueError, match=r"are the same run \(seed 0\) with different results"):
        markdown("lora_table2", results)
    shutil.rmtree(results / "moved")
    for name, score in (("moved", 0.5), ("again", 0.6)):
        changes = {"start_from": f"runs/{name}"}
        write(results / name, "lora_table2", arg, {"accuracy": score}, changes=changes)
    with pytest.raises(ValueError, match=r"different results \(completed, completed\): keep one"):
        collect_runs.one_of_each([r for r in find(results) if r.folder.name in ("moved", "again")])
    for name in ("moved", "again"):
        shutil.rmtree(results / name)
    how = {"status": "diverged", "best_step": None}
    write(results / "moved", "lora_table2", arg, {"accuracy": 0.5}, **how)
    with pytest.raises(ValueError, match=r"different results \(completed, diverged\): keep one"):
        markdown("lora_table2", results)


def test_a_run_that_diverged_counts_before_one_that_failed():
    """Whatever their folders are called."""

    def run(status, folder):
        record = types.SimpleNamespace(status=status, metrics_best={}, metrics_last={}, seed=0)
        return types.SimpleNamespace(number=(0, 0), folder=folder, record=record)

    for folders in (("a", "b"), ("b", "a")):
        both = [run("failed", folders[0]), run("diverged", folders[1])]
        (kept,) = collect_runs.one_of_each(both)
        assert kept.record.status == "diverged"


def test_a_failed_attempt_with_other_settings_is_left_out(base):
    results, _ = base
    before = markdown("lora_table2", results)
    arg, changes = "model=roberta_base,task=sst2,seed=9", {"optimizer.learning_rate": 9.0}
    how = {"status": "failed", "note": "killed", "changes": changes}
    write(results / "other", "lora_table2", arg, {"accuracy": None}, **how)
    assert markdown("lora_table2", results) == before
    assert "1 run left out: not completed, and with other settings" in notes("lora_table2", results)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"changes": {"variant.rank": 4}}, "variant.rank is 8 in one and 4 in the other"),
        ({"changes": {"variant.dropout": 0.1}}, "variant.dropout is absent in one and 0.1 in the"),
        ({"changes": {"optimizer.learning_rate": 1e-3}}, "optimizer.learning_rate is"),
        ({"changes": {"start_from": "runs/mnli"}}, "start_from is null in one and a run in the"),
        ({"data_digest": "other"}, "were trained on different data"),
        ({"weights_digest": "other"}, "began from different weights"),
    ],
)
def test_runs_of_a_cell_are_of_the_same_thing(base, how, said):
    results, _ = base
    arg = "model=roberta_base,task=sst2,seed=9"
    write(results / "sst2" / "9", "lora_table2", arg, {"accuracy": 0.9}, **how)
    with pytest.raises(ValueError, match=re.escape(said)):
        config_tables.render_table("lora_table2", results, "csv")
    # what tells runs of one cell apart, and what changes no result, may differ
    shutil.rmtree(results / "sst2" / "9")
    free = {"data.folder": "elsewhere", "train.log_every": 7, "train.checkpoint_every": 9}
    free["variant.dropout"] = None  # as older versions recorded what was not set
    write(results / "sst2" / "9", "lora_table2", arg, {"accuracy": 0.9}, changes=free)
    row = markdown("lora_table2", results)["RoBERTa base (ours / published)"]["LoRA"]
    assert "(6)" in row["SST-2"]


def test_smoke_runs_and_tuning_runs_are_left_out_and_counted(tmp_path):
    for seed in range(3):
        write(
            tmp_path / f"run{seed}", "glue", f"seed={seed}", {"matthews": 0.4}, parameters=221_184
        )
    write(tmp_path / "smoke", "glue", "size=smoke", {"matthews": 0.0})
    for number, rate in enumerate((1e-3, 2e-3)):
        changes = {"data.validation": 500, "optimizer.learning_rate": rate}
        write(tmp_path / f"tune{number}", "glue", "", {"matthews": 0.9}, changes=changes)
    made = markdown("glue", tmp_path)
    assert made == {
        "MiniLM (all-MiniLM-L6-v2) (ours)": {
            "LoRA": {"parameters": "221,184", "CoLA": "40.0 ± 0.0 (3)"}
        }
    }
    said = notes("glue", tmp_path)
    assert "1 run left out: of another size" in said
    assert "2 runs left out: validated on a part of the training examples" in said
    smoke = markdown("glue", tmp_path, size="smoke").popitem()[1]
    assert smoke["LoRA"]["CoLA"] == "0.0 (1)"


def test_mistakes_are_named(base):
    results, _ = base
    with pytest.raises(ValueError, match="--table=lora_tabel2: unknown table; nearest: 'lora_ta"):
        config_tables.render_table("lora_tabel2", results, "rich")
    with pytest.raises(ValueError, match=r"--model=roberta_bse: nothing .* 'roberta_base'"):
        config_tables.render_table("lora_table2", results, "rich", model="roberta_bse")
    with pytest.raises(FileNotFoundError, match=r"--results .*nowhere: no such folder"):
        config_tables.render_table("lora_table2", results / "nowhere", "rich")
    path = results / "sst2" / "0" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": -1, "extra": 1}))
    with pytest.raises(ValueError, match=r"sst2/0/record.json: .*extra is not a field"):
        config_tables.render_table("lora_table2", results, "rich")


def test_notes_are_of_the_model_that_is_shown(base):
    results, _ = base
    write(results / "small", "lora_table2", "task=rte", {"accuracy": 0.5}, parameters=73_728)
    text = config_tables.render_table("lora_table2", results, "csv", model="minilm")
    assert "roberta" not in text
    how = {"status": "diverged", "note": "too fast"}
    arg = "model=roberta_base,task=rte,seed=9,start_from=runs/mnli"
    write(results / "bad", "lora_table2", arg, {}, **how)
    text = config_tables.render_table("lora_table2", results, "markdown", model="minilm")
    assert "did not start from an MNLI adapter" in text and "too fast" not in text


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (lambda config: config["data"].pop("draw"), "data.draw"),
        (lambda config: config["study"].pop("size"), "study.size"),
        (lambda config: config.update(train=None), "train.select"),
        (lambda config: config.pop("start_from"), "start_from"),
        (lambda config: config.update(study="glue"), "study.table"),
    ],
)
def test_a_record_of_another_version_is_named(tmp_path, change, missing):
    write(tmp_path / "a", "glue", "", {"matthews": 0.5}, parameters=1)
    path = tmp_path / "a" / "record.json"
    values = json.loads(path.read_text())
    change(values["config"])
    values["config_digest"] = config_digest(values["config"])
    path.write_text(json.dumps(seal.sealed(seal.opened(values)[0])))
    with pytest.raises(
        ValueError, match=f"a/record.json: its config has no {missing}: another ver"
    ):
        config_tables.render_table("glue", tmp_path, "rich")
