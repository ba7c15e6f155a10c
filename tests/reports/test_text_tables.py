"""The papers' decoder tables: runs of tiny decoders, and where which number stands."""

import csv
import importlib
import io

import pytest
from fake_records import write
from small_writer import write_data, write_model

import lora_jax as lj
from configs import dora_table1, lora_table3, pissa_nlg, qlora_llama
from experiments.reports.tables.config_tables import render_table
from experiments.runs import run
from experiments.setup import experiment
from experiments.setup.config import parse
from experiments.sweeps import preflight
from experiments.sweeps.trials import Trial
from lora_jax.data.sources import commonsense

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "all")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: write_model(folder / name, name) for name in ("gpt2", "llama")}


def tiny(module, arg, data, model, **changes):
    """The settings of a smoke run, on a tiny decoder, whose matrices have few rows."""
    config = module.get_config(f"{arg},size=smoke,folder={data}")
    config.model.name = str(model)
    if "rank" in config.variant:
        config.variant.rank = 2
    config.generate.samples, config.data.buckets = 0, 1
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return parse(config.to_dict())


def shown(name, folder, **choice):
    """The cells of a rendered table by model, row and heading's task and metric."""
    rows = csv.DictReader(io.StringIO(render_table(name, folder, "csv", **choice)))
    return {(r["model"], r["row"], r["task"], r["metric"]): r for r in rows}


@pytest.mark.slow
def test_lora_table3_in_its_smoke_size(data, models, tmp_path):
    record = run.run(tiny(lora_table3, "", data, models["gpt2"]), tmp_path)
    assert (record.status, record.steps) == ("completed", 4)
    # queries and values of two layers of width 16, A and B of rank 2
    assert record.parameters_adapters == 2 * 2 * 2 * (16 + 16)
    assert record.metric == "token_loss" and record.rule.startswith("min validation token_loss")
    assert record.metrics_best.keys() - record.metrics_last.keys() == {
        "bleu_lowercase_test",
        "rouge_l_test",
    }
    cells = shown("lora_table3", tmp_path, size="smoke")
    for metric in ("bleu_lowercase_test", "rouge_l_test"):
        cell = cells["smollm2", "lora", "e2e", metric]
        assert cell["state"] == "run" and float(cell["ours"]) == record.metrics_best[metric]
        assert cells["smollm2", "full", "e2e", metric]["state"] == "not run"
    assert {each[0] for each, cell in cells.items() if cell["published"]} == {
        "gpt2_medium",
        "gpt2_large",
    }


@pytest.mark.slow
def test_dora_table1_fills_several_columns_with_one_run(data, models, tmp_path):
    arg = "method=dora,task=ARC-Easy+openbookqa"
    config = tiny(dora_table1, arg, data, models["llama"], generate__beams=1)
    record = run.run(config, tmp_path)
    assert (record.status, record.steps) == ("completed", 4)
    # of (in, out), four layers' matrices: A, B of rank 2, and a magnitude for each output
    matrices = 2 * [(16, 16), (16, 8), (16, 8), (16, 20), (20, 16)]
    assert record.parameters_adapters == sum(2 * (a + b) + b for a, b in matrices)
    cells = shown("dora_table1", tmp_path, size="smoke")
    for name in commonsense.SETS:
        cell = cells["smollm2", "dora", dora_table1.COLUMN, f"accuracy_written_{name}"]
        if name in ("ARC-Easy", "openbookqa"):
            value = record.metrics_last[f"accuracy_written_{name}"]
            assert (cell["state"], float(cell["ours"])) == ("run", 100 * value)
        else:
            assert cell["state"] == "not measured"


def test_all_options_of_a_question_may_need_more_than_a_text_may_have(data, models):
    config = tiny(dora_table1, "", data, models["llama"])
    made = experiment.build(config).texts
    assert (len(made.encoded["train"]), len(made.task.extra)) == (16, 8)  # of the joint file
    limit = config.data.max_length
    assert made.encoded["train"].lengths.max() <= limit < made.boundaries[-1]
    lengths = made.encoded["ARC-Challenge"].lengths
    assert limit < lengths.max() <= made.boundaries[-1]
    # all that the model takes
    config = tiny(dora_table1, "", data, models["llama"], data__max_length=512)
    assert experiment.build(config).texts.boundaries == made.boundaries


@pytest.mark.parametrize(
    ("arg", "changes", "said"),
    [
        ("task=openbookqa", {}, "task 'openbookqa' has no further parts"),
        (
            "",
            {"generate__part": "test"},
            "config.generate.part 'test': expected validation or extra",
        ),
        (
            "",
            {"generate__metrics": ("bleu", "roug_l")},
            "unknown metric 'roug_l' of texts; nearest: 'rouge",
        ),
        (
            "",
            {"generate__metrics": ("cider",)},
            "there is no metric 'cider': COCO's CIDEr needs Java",
        ),
    ],
)
def test_texts_that_cannot_be_scored_are_refused_before_training(arg, changes, said, data, models):
    with pytest.raises(ValueError, match=said):
        experiment.build(tiny(dora_table1, arg, data, models["llama"], **changes))


def test_only_questions_with_options_have_a_written_accuracy(data, models):
    def config(**changes):
        written = {"generate__metrics": ("accuracy_written",), **changes}
        return tiny(lora_table3, "", data, models["gpt2"], **written)

    with pytest.raises(ValueError, match="'accuracy_written': data set 'e2e/test' has no options"):
        experiment.build(config())
    experiment.build(config(generate__scored=0))  # which asks for nothing


def test_trials_of_language_models_are_checked_before_a_sweep(data, models):
    good = tiny(dora_table1, "method=dora,task=all", data, models["llama"])
    # the tiny decoder's matrices have 8 rows at least
    changes = {"variant__rank": 32, "variant__initialization": "pissa"}
    unfit = tiny(dora_table1, "task=all", data, models["llama"], **changes)
    unscored = tiny(dora_table1, "task=openbookqa", data, models["llama"])
    trials = [Trial(name, (), {}, config.plain) for name, config in (("a", good), ("b", unfit))]
    (loop,) = preflight.check_trials(trials[:1])
    assert (loop.steps, loop.metric) == (4, "accuracy")
    with pytest.raises(ValueError, match=r"^b: .*rank = 32 directions, more than min\(in, out\)"):
        preflight.check_trials(trials)
    with pytest.raises(ValueError, match=r"every trial: config\.generate\.part extra: task 'openb"):
        preflight.check_trials([Trial("c", (), {}, unscored.plain)])


SEVEN = 2 * [(16, 16), (16, 8), (16, 8), (16, 16), (16, 20), (16, 20), (20, 16)]
"""(in, out) of all linear layers of the tiny decoder but its head."""


@pytest.mark.slow
def test_pissa_nlg_in_its_smoke_size(data, models, tmp_path):
    arg = "method=pissa,task=metamath,file=alpaca_data.json"
    record = run.run(tiny(pissa_nlg, arg, data, models["llama"]), tmp_path)
    assert (record.status, record.steps) == ("completed", 4)
    assert record.parameters_adapters == sum(2 * (a + b) for a, b in SEVEN)
    assert "exact_match" in record.metrics_last
    text = render_table("pissa_nlg", tmp_path, "markdown", size="smoke").replace("\\", "")
    assert "variant.rank is 2 in place of 16" in text and "data.files" not in text
    cells = shown("pissa_nlg", tmp_path, size="smoke")
    for metric in ("token_loss", "rouge_l"):
        cell = cells["smollm2", "pissa", "metamath", metric]
        assert float(cell["ours"]) == record.metrics_last[metric]
        assert cells["smollm2", "pissa", "wizardlm", metric]["state"] == "not run"
    assert "smollm2" not in {each[0] for each, cell in cells.items() if cell["published"]}


def test_qlora_llama_stores_all_linear_layers_but_the_head(data, models):
    config = tiny(qlora_llama, "method=lora_nf4_double", data, models["llama"])
    made = experiment.build(config)
    stored = {each.use.path: each.storage for each in made.frozen.spec.placements if each.storage}
    attention = {f"layers/attention/{name}/kernel" for name in ("query", "key", "value", "output")}
    assert stored.keys() == attention | {f"layers/{name}/kernel" for name in ("gate", "up", "down")}
    assert set(stored.values()) == {lj.NF4(double_quant=True)}
    counted = lj.summary(made.trainable, made.frozen)
    assert counted.trained == sum(2 * (a + b) for a, b in SEVEN)
    assert (len(made.texts.task.train), len(made.texts.task.validation)) == (16, 8)
    assert config.generate.scored == 0  # losses alone


BLEU = (0.5, 69.0, 70.4)


def test_scores_stand_beside_the_published_ones_of_the_same_metric_alone(tmp_path):
    for seed, value in enumerate(BLEU):
        scores = {"bleu_lowercase_test": value, "rouge_l_test": 60.0 + seed}
        arg = f"model=gpt2_medium,method=lora,seed={seed}"
        write(tmp_path / str(seed), "lora_table3", arg, scores, parameters=393_216)
    cells = shown("lora_table3", tmp_path)
    bleu = cells["gpt2_medium", "lora", "e2e", "bleu_lowercase_test"]
    assert float(bleu["ours"]) == pytest.approx(sum(BLEU) / 3) and bleu["published"] == "70.4"
    rouge = cells["gpt2_medium", "lora", "e2e", "rouge_l_test"]
    assert (float(rouge["ours"]), rouge["published"]) == (61.0, "")
    for metric in ("nist", "meteor", "rouge_l_coco", "cider"):
        cell = cells["gpt2_medium", "lora", "e2e", metric]
        assert (cell["state"], cell["failed"]) == ("published only", "0") and not cell["ours"]
        assert cell["published"]
    text = render_table("lora_table3", tmp_path, "markdown", model="gpt2_medium")
    assert "| 46.63 ± 39.96 (3) / 70.40 ± 0.10 | 61.00 ± 1.00 (3) / – | – / 8.85 ± 0.02 |" in text
    assert "393,216 / 0.35M" in text and "runs on the test part, each at its best" in text
    assert "adapter H, 11.09M (published only)" in text
    assert "our runs are not the config's" not in text


@pytest.mark.parametrize(
    ("name", "arg"), [("lora_table3", "model=gpt2_large"), ("dora_table1", "model=llama_7b")]
)
def test_runs_that_tune_are_left_out(name, arg, tmp_path):
    changes = {"data.validation": 500}
    write(tmp_path, name, arg, {"token_loss": 1.0}, changes=changes)
    text = render_table(name, tmp_path, "markdown")
    assert "1 run left out: validated on a part of the training examples" in text
    assert "not measured" not in text


def test_the_average_counts_each_set_once(tmp_path):
    for seed in range(2):
        values = [0.1 * seed + 0.05 * place for place in range(8)]
        scores = {
            f"accuracy_written_{name}": value
            for name, value in zip(commonsense.SETS, values, strict=True)
        }
        arg = f"model=llama_3_8b,method=dora_half,seed={seed}"
        write(tmp_path / str(seed), "dora_table1", arg, scores, parameters=29_097_984)
    cells = shown("dora_table1", tmp_path)
    average = cells["llama_3_8b", "dora_half", "average", "mean"]
    assert float(average["ours"]) == pytest.approx(100 * (0.05 + 0.05 * 3.5))
    assert average["published"] == "85.0"
    hellaswag = cells["llama_3_8b", "dora_half", dora_table1.COLUMN, "accuracy_written_hellaswag"]
    assert (float(hellaswag["ours"]), hellaswag["published"]) == (pytest.approx(20), "95.5")


def test_questions_of_other_sets_are_said_to_be_others(tmp_path):
    scores = {f"accuracy_written_{name}": 0.5 for name in commonsense.SETS[:2]}
    write(tmp_path, "dora_table1", "model=llama_7b,method=dora,task=boolq+piqa", scores)
    text = render_table("dora_table1", tmp_path, "markdown", model="llama_7b").replace("\\", "")
    (row,) = (line for line in text.splitlines() if line.startswith("| DoRA, r=32"))
    assert "50.0 (1) / 69.7 | 50.0 (1) / 83.4 | 1 not measured / 78.6 |" in row
    assert row.endswith("| not run / 78.4 |")  # a mean over two sets is not that of eight
    said = 'our runs are not the config\'s: data.name is "boolq+piqa" in place of "commonsense_170k'
    assert said in text


def test_what_is_not_evaluated_here_is_published_only(tmp_path):
    for name, model, row in (
        ("pissa_nlg", "mistral_7b", "pissa"),
        ("qlora_llama", "llama_13b", "lora_nf4_double"),
    ):
        table = importlib.import_module(f"configs.{name}").TABLE
        cells = {
            key[2:]: cell for key, cell in shown(name, tmp_path).items() if key[:2] == (model, row)
        }
        for _, task, metric in table["columns"]:
            assert (cells[task, metric]["state"], cells[task, metric]["published"]) == (
                "not run",
                "",
            )
        others = [(task, metric) for _, task, metric in table["printed"] if task != "mmlu"]
        assert others and {cells[key]["state"] for key in others} == {"published only"}
    gemma = [c for key, c in shown("pissa_nlg", tmp_path).items() if key[0] == "gemma_7b"]
    assert len(gemma) == 4 * 5 and {cell["state"] for cell in gemma} == {"published only"}
