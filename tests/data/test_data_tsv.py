"""GLUE and SuperGLUE in their official layouts, against what the files were written from."""

import json
import sys

import numpy as np
import official
import pytest
from official import sentence
from one_line import refuses

from lora_jax.data import SPECS, load_task, normalise, tasks
from lora_jax.data.metrics import label_metrics
from lora_jax.data.sources import tsv
from lora_jax.data.sources.tsv import read_part

FILE = """
from lora_jax.data.tasks import TaskSpec

TASKS = {
    "pairs": TaskSpec(
        folders=("Pairs",),
        columns={"first": "left", "second": "right"},
        text="{first}",
        seconds=("{second}",),
        label_names=("no", "yes"),
        metrics=("f1",),
        examples=3,
    )
}
"""


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """A folder with all GLUE tasks, and one with those of SuperGLUE."""
    root = tmp_path_factory.mktemp("official")
    for name, files in official.LAYOUT.items():
        official.write(root / name.split("/")[0], files())
    return root


def load(layout, name):
    return load_task(name, "tsv", layout / name.split("/")[0])


def test_a_file_is_all_that_a_task_needs(tmp_path, monkeypatch):
    assert set(SPECS) == set(official.LAYOUT)
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    monkeypatch.setitem(SPECS, "mine/pairs", tasks.find_specs()["mine/pairs"])
    rows = [["a", "b", "yes"], ["c", "d", "no"], ["e", "f", "1"]]
    head = ["left", "right", "label"]
    files = {f"Pairs/{name}.tsv": official.lines(head, rows) for name in ("train", "dev")}
    task = load_task("mine/pairs", "tsv", official.write(tmp_path, files))
    assert (task.train.texts, task.train.second_texts) == (("a", "c", "e"), ("b", "d", "f"))
    assert (task.train.labels.tolist(), task.metric, task.unlabelled) == ([1, 0, 1], "f1", {})
    assert SPECS["mine/pairs"].examples == 3
    refuses("unknown data.name 'mine/pair'; nearest: 'mine/pairs'", load_task, "mine/pair", "tsv")
    sys.modules.pop("lora_jax.data.tasks.mine")


@pytest.mark.parametrize(
    ("name", "labels", "text", "second", "metrics"),
    [
        ("glue/cola", [0, 1] * 4, sentence(0), None, ("matthews", "accuracy")),
        ("glue/mrpc", [0, 0, 1, 1, 1, 0], *official.MRPC_ROWS[0][3:], ("accuracy", "f1", "acc")),
        ("glue/stsb", [5.0, 3.8, 0.0, 2.667], sentence(0), sentence(60), ("pearson", "spear")),
        ("glue/mnli", [0, 1, 2, 0, 1, 2, 0], sentence(0), sentence(70), ("accuracy",)),
        ("glue/qqp", [0, 1, 0, 1, 0], sentence(0), sentence(50), ("accuracy", "f1", "acc")),
        ("glue/qnli", [0, 1] * 3, sentence(0), sentence(40), ("accuracy",)),
        ("glue/rte", [1, 0] * 3, sentence(0), sentence(40), ("accuracy",)),
        ("glue/wnli", [0, 1] * 3, sentence(0), sentence(40), ("accuracy",)),
        ("super_glue/boolq", [0, 1] * 3, sentence(0), sentence(1), ("accuracy",)),
        ("super_glue/cb", [2, 0, 1, 2, 0, 1], sentence(0), sentence(1), ("accuracy", "f1")),
        ("super_glue/rte", [1, 0] * 3, sentence(0), sentence(1), ("accuracy",)),
        ("super_glue/wic", [1, 0] * 3, f"word0: {sentence(0)}", sentence(1), ("accuracy",)),
    ],
)
def test_texts_and_labels_are_the_official_ones(layout, name, labels, text, second, metrics):
    task = load(layout, name)
    train = task.train
    assert (train.labels.tolist(), train.texts[0]) == (labels, text)
    assert (train.second_texts and train.second_texts[0]) == second
    assert train.ids == tuple(str(i) for i in range(len(labels)))
    assert all(a.startswith(b) for a, b in zip(task.metrics, metrics, strict=False))
    assert task.metric == metrics[0]
    assert (task.label_names is None) == (name == "glue/stsb") == (task.num_outputs == 1)


def test_the_parts_of_cola_and_mnli(layout):
    cola, mnli = load(layout, "glue/cola"), load(layout, "glue/mnli")
    assert cola.validation.texts == tuple(sentence(i) for i in range(8, 12))
    assert cola.unlabelled["test"].texts == tuple(sentence(i + 20) for i in range(3))
    assert cola.unlabelled["test"].labels is None
    assert cola.label_names == ("unacceptable", "acceptable")
    assert mnli.validation.texts[0] == sentence(10)
    assert mnli.extra["mismatched"].texts[0] == sentence(20)
    assert {k: len(v) for k, v in mnli.unlabelled.items()} == {
        "test_matched": 2,
        "test_mismatched": 2,
    }
    held = load_task("glue/mnli", "tsv", layout / "glue", validation=3)
    assert sorted(held.train.texts + held.validation.texts) == sorted(mnli.train.texts)
    assert sorted(held.validation.labels) == [0, 1, 2]
    assert not set(map(normalise, held.validation.texts)) & set(map(normalise, held.train.texts))
    assert (held.extra, held.unlabelled.keys()) == ({}, mnli.unlabelled.keys())


def test_the_diagnostic_set_goes_with_mnli(layout, tmp_path):
    """Its labelled file is scored by R3 of the GLUE paper, Matthews' over three classes."""
    task, mnli = load(layout, "glue/ax"), load(layout, "glue/mnli")
    part = task.extra["ax"]
    assert task.train.digest() == mnli.train.digest()
    assert list(task.unlabelled) == ["diagnostic"]
    assert part.texts == task.unlabelled["diagnostic"].texts
    assert part.texts == tuple(sentence(i + 3) for i in range(3))
    assert part.labels.tolist() == [2, 0, 1]  # as MNLI numbers them
    outputs = {name: np.eye(3)[each.labels] for name, each in task.extra.items()}
    outputs["ax"][0] = [1, 0, 0]
    outputs["validation"] = np.eye(3)[task.validation.labels]
    found = label_metrics.score_parts(task, outputs)
    # One of three is wrong: the covariances are 1/3 of the squared lengths' mean, by the formula.
    assert found["matthews_ax"] == pytest.approx((2 * 3 - 3) / np.sqrt((9 - 5) * (9 - 3)))
    assert found["accuracy_ax"] == pytest.approx(2 / 3)
    assert found["accuracy"] == found["accuracy_mismatched"] == found["accuracy_m_mm"] == 1
    assert "matthews" not in found and "matthews_mismatched" not in found
    assert (task.metrics, task.hold_out(3).extra) == (("accuracy",), {})
    assert task.digest() != mnli.digest()

    files = official.LAYOUT["glue/ax"]()
    full = files.pop("diagnostic/diagnostic-full.tsv")
    bare = load_task("glue/ax", "tsv", official.write(tmp_path / "bare", files))
    assert (list(bare.extra), bare.digest()) == (["mismatched"], mnli.digest())
    del files["diagnostic/diagnostic.tsv"]
    other = official.write(tmp_path / "other", {**files, "diagnostic/other.tsv": ""})
    said = r"has no diagnostic\.tsv for glue/ax; it has other"
    refuses(said, load_task, "glue/ax", "tsv", other)
    official.write(other, {"diagnostic/diagnostic-full.tsv": full})
    only = load_task("glue/ax", "tsv", other)
    assert (list(only.extra), only.unlabelled) == (["mismatched", "ax"], {})
    wrong = full.replace("\tneutral", "\tneutrl")
    official.write(other, {"diagnostic/diagnostic-full.tsv": wrong})
    said = "line 4: 'Label' is 'neutrl', not one of entailment, neu"
    refuses(said, load_task, "glue/ax", "tsv", other)


def test_copa_is_one_example_for_each_choice(layout):
    task = load(layout, "super_glue/copa")
    assert (len(task.train), task.choices, task.num_outputs) == (12, 2, 2)
    asked = ["What was the cause?", "What happened as a result?"]
    for i in range(6):
        for j, choice in enumerate(["first", "second"]):
            assert task.train.texts[2 * i + j] == f"{sentence(i)} {asked[i % 2]}"
            assert task.train.second_texts[2 * i + j] == f"{choice} {i}"
            assert task.train.labels[2 * i + j] == (j == i // 2 % 2)


@pytest.mark.parametrize("inside", ["", "glue_data", "GLUE"])
@pytest.mark.parametrize("spelt", ["SST-2", "SST2", "sst_2"])
def test_variants_of_the_layout(tmp_path, inside, spelt):
    for path, content in official.sst2().items():
        official.write(tmp_path / inside, {path.replace("SST-2", spelt): content})
    expected = tuple(sentence(i) for i in range(7))
    assert load_task("glue/sst2", "tsv", tmp_path).train.texts == expected
    assert load_task("glue/sst2", "tsv", tmp_path / inside / spelt).train.texts == expected


@pytest.mark.parametrize("inside", ["my_data", "MyData", "my_data_data"])
def test_a_benchmark_may_be_called_data(tmp_path, monkeypatch, inside):
    spec = SPECS["glue/sst2"]
    monkeypatch.setattr(tsv, "SPECS", {**SPECS, "my_data/sst2": spec})
    official.write(tmp_path / inside, official.sst2())
    assert tsv.find(tmp_path, spec) == tmp_path / inside / "SST-2"


def test_both_tasks_called_rte_are_told_apart_and_test_parts_may_be_absent(tmp_path):
    files = official.LAYOUT["glue/rte"]()
    del files["RTE/test.tsv"]
    official.write(tmp_path / "glue", files)
    official.write(tmp_path / "super_glue", official.LAYOUT["super_glue/rte"]())
    glue, other = (load_task(f"{s}/rte", "tsv", tmp_path) for s in ("glue", "super_glue"))
    assert (glue.train.second_texts[0], glue.unlabelled) == (sentence(40), {})
    assert other.train.second_texts[0] == sentence(1)


def test_superglue_rows_are_in_the_order_of_their_idx(tmp_path):
    files = official.super_glue("CB")
    rows = files["CB/train.jsonl"].splitlines(keepends=True)
    whole = load_task("super_glue/cb", "tsv", official.write(tmp_path / "a", files))
    files["CB/train.jsonl"] = "".join(reversed(rows))
    turned = load_task("super_glue/cb", "tsv", official.write(tmp_path / "b", files))
    assert turned.digest() == whole.digest()


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("sst2", ".", r"no train\.tsv for glue/sst2; it has dev\.tsv, test\.tsv, train\.subset\."),
        ("cola", ".", r"has no folder CoLA; it has SST-2; give a folder"),
        ("cola", "nowhere", "there is no folder"),
        ("rte", "SST-2", "has no folder RTE"),  # another task's own folder is not taken for it
    ],
)
def test_a_missing_part_is_told_with_what_is_there(tmp_path, name, folder, message):
    files = official.sst2()
    files["SST-2/train.subset.tsv"] = files.pop("SST-2/train.tsv")
    official.write(tmp_path, files)
    refuses(message, load_task, f"glue/{name}", "tsv", tmp_path / folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sentence2\tlabel", "second\tlabel", r"train.tsv has no column 'sentence2'; .*'second"),
        ("\tentailment\n", "\tentailed\n", "line 3: 'label' is 'entailed', not one of entailment,"),
        ("\tentailment\n", "\t\n", "line 3: 'label' is '', not one of"),
        ("\tentailment\n", "\n", "line 3: no column 'label'; nearest: "),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, old, new, message):
    files = official.rte()
    assert old in files["RTE/train.tsv"]
    files["RTE/train.tsv"] = files["RTE/train.tsv"].replace(old, new, 1)
    refuses(message, load_task, "glue/rte", "tsv", official.write(tmp_path, files))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{broken\n", "line 1 is not JSON"), ('{"premise": "é"}'.encode("latin-1"), "is not UTF-8")],
)
def test_other_damage_is_named(tmp_path, content, message):
    official.write(tmp_path, official.super_glue("CB"))
    (tmp_path / "CB" / "train.jsonl").write_bytes(content)
    refuses(message, load_task, "super_glue/cb", "tsv", tmp_path)


@pytest.mark.parametrize(
    ("name", "label", "expected"),
    [
        ("super_glue/wic", "0.7", "'label' is 0.7, not one of False, True"),
        ("super_glue/wic", "1.0", 1),
        ("super_glue/wic", "1", 1),
        ("super_glue/wic", '"1"', 1),
        ("super_glue/wic", '"True"', 1),
        ("super_glue/wic", "true", 1),
        ("super_glue/wic", "null", "'label' is None, not one of"),
        ("super_glue/wic", "[1]", r"'label' is \[1\], not one of"),
        ("super_glue/wic", '"1_0"', "'label' is '1_0', not one of"),
        ("super_glue/wic", '" 1"', "'label' is ' 1', not one of"),
        ("super_glue/wic", "-1", "'label' is -1, not one of"),
        ("super_glue/wic", "2", "'label' is 2, not one of"),
        ("super_glue/cb", "true", "'label' is True, not one of entailment"),
        ("super_glue/cb", "1.5", "'label' is 1.5, not one of entailment"),
        ("glue/stsb", "2_667", "'score' is '2_667', not a number"),
        ("glue/stsb", "nan", "'score' is 'nan', not a number"),
        ("glue/stsb", "٣", "'score' is '٣', not a number"),
        ("glue/stsb", " 4", "'score' is ' 4', not a number"),
        ("glue/stsb", "4.250", 4.25),
    ],
)
def test_a_label_is_what_stands_there(tmp_path, name, label, expected):
    """Of one file with one row; the rest of a task does not matter."""
    spec = SPECS[name]
    path = tmp_path / spec.parts[0].files[0]
    values = dict.fromkeys(spec.columns.values(), "x")
    if path.suffix == ".jsonl":
        path.write_text(json.dumps(values)[:-1] + f', "{spec.label}": {label}}}\n')
    else:
        path.write_text(official.lines([*values, spec.label], [[*values.values(), label]]))
    if isinstance(expected, str):
        where = rf"{path.name}, line {1 if path.suffix == '.jsonl' else 2}: {expected}"
        refuses(where, read_part, path, spec, spec.parts[0])
    else:
        (record,) = read_part(path, spec, spec.parts[0])
        assert (record.label, type(record.label)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("glue/colla", "tsv", "x"), "unknown data.name 'glue/colla'; nearest: 'glue/cola'"),
        (("imdb", "tsv", "x"), r"'imdb': there are rotten_tomatoes, glue/cola, .*own_data"),
        (("glue/cola", "tvs", "x"), "unknown data.source 'tvs'; nearest: 'tsv'"),
        (("rotten_tomatoes", "tsv", "x"), "'rotten_tomatoes' is not of source 'tsv' but of 'demo'"),
        (("glue/cola", "demo", "x"), "source 'demo' reads no folder of yours"),
        (("glue/cola", "tsv"), r"needs data.folder.*https://gluebenchmark.com/tasks.*source=tfds"),
        (("super_glue/cb", "tsv", "nowhere"), r"no folder nowhere; .*https://super.*size=smoke"),
        (
            ("glue/cola", "tsv", "x", {"train": "mine.tsv", "text": ""}),
            r"^data.files.train: source 'tsv' reads no files of your own",
        ),
    ],
)
def test_what_no_source_has_is_refused(arguments, message):
    refuses(message, load_task, *arguments)
