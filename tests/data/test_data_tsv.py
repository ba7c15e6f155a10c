"""GLUE and SuperGLUE in their official layouts, against what the files were written from."""

import json

import numpy as np
import official
import pytest

from lora_jax.data import SPECS, load_task, normalise
from lora_jax.data.sources.tsv import read_part
from lora_jax.metrics import label_metrics

NAMES = list(official.LAYOUT)


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """A folder with all GLUE tasks, and one with those of SuperGLUE."""
    root = tmp_path_factory.mktemp("official")
    for name, files in official.LAYOUT.items():
        official.write(root / name.split("/")[0], files())
    return root


def load(layout, name):
    return load_task(name, "tsv", layout / name.split("/")[0])


def test_every_task_is_there():
    glue = ["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli", "ax"]
    super_glue = ["boolq", "cb", "copa", "wic", "rte"]
    assert set(SPECS) == {f"glue/{n}" for n in glue} | {f"super_glue/{n}" for n in super_glue}
    assert set(NAMES) == set(SPECS)


def test_cola_has_no_header_and_its_texts_are_as_they_are(layout):
    task = load(layout, "glue/cola")
    assert task.train.texts == tuple(official.sentence(i) for i in range(8))
    assert task.train.labels.tolist() == [0, 1] * 4
    assert task.validation.texts == tuple(official.sentence(i) for i in range(8, 12))
    assert task.unlabelled["test"].texts == tuple(official.sentence(i + 20) for i in range(3))
    assert task.unlabelled["test"].labels is None
    assert task.label_names == ("unacceptable", "acceptable")
    assert (task.metric, task.metrics) == ("matthews", ("matthews", "accuracy"))


def test_mrpc_has_a_byte_order_mark_and_odd_columns(layout):
    task = load(layout, "glue/mrpc")
    rows = [official.MRPC_ROWS[i] for i in (1, 4, 6)]
    assert task.validation.texts == tuple(row[3] for row in rows)
    assert task.validation.second_texts == tuple(row[4] for row in rows)
    assert task.validation.labels.tolist() == [1, 0, 0]
    assert task.validation.ids == ("0", "1", "2")
    assert task.metrics == ("accuracy", "f1", "accuracy_f1")


def test_labels_are_numbered_officially(layout):
    assert load(layout, "glue/rte").train.labels.tolist() == [1, 0] * 3
    assert load(layout, "glue/qnli").train.labels.tolist() == [0, 1] * 3
    assert load(layout, "glue/wnli").train.labels.tolist() == [0, 1] * 3
    assert load(layout, "glue/mnli").train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert load(layout, "super_glue/cb").train.labels.tolist() == [2, 0, 1, 2, 0, 1]
    assert load(layout, "super_glue/boolq").train.labels.tolist() == [0, 1] * 3


def test_stsb_is_a_regression(layout):
    task = load(layout, "glue/stsb")
    assert task.train.labels.tolist() == [5.0, 3.8, 0.0, 2.667]
    assert (task.label_names, task.num_outputs, task.metric) == (None, 1, "pearson")


def test_mnli_has_two_development_and_two_test_parts(layout):
    task = load(layout, "glue/mnli")
    assert task.validation.texts[0] == official.sentence(10)
    assert task.extra["mismatched"].texts[0] == official.sentence(20)
    assert {k: len(v) for k, v in task.unlabelled.items()} == {
        "test_matched": 2,
        "test_mismatched": 2,
    }


def test_the_diagnostic_set_goes_with_mnli(layout):
    task = load(layout, "glue/ax")
    assert task.train.digest() == load(layout, "glue/mnli").train.digest()
    assert list(task.unlabelled) == ["diagnostic"]
    assert task.unlabelled["diagnostic"].texts == tuple(official.sentence(i + 3) for i in range(3))


def test_the_labelled_diagnostic_set_is_scored_by_matthews(layout, tmp_path):
    """R3 of the GLUE paper, over three classes; without its file all is as it was."""
    task = load(layout, "glue/ax")
    part = task.extra["ax"]
    assert part.texts == task.unlabelled["diagnostic"].texts
    assert part.labels.tolist() == [2, 0, 1]  # as MNLI numbers them
    outputs = {name: np.eye(3)[each.labels] for name, each in task.extra.items()}
    outputs["ax"][0] = [1, 0, 0]
    found = label_metrics.score_parts(
        task, {"validation": np.eye(3)[task.validation.labels], **outputs}
    )
    # One of three is wrong: the covariances are 1/3 of the squared lengths' mean, by the formula.
    assert found["matthews_ax"] == pytest.approx((2 * 3 - 3) / np.sqrt((9 - 5) * (9 - 3)))
    assert found["accuracy_ax"] == pytest.approx(2 / 3)
    assert found["accuracy"] == found["accuracy_mismatched"] == found["accuracy_m_mm"] == 1
    assert "matthews" not in found and "matthews_mismatched" not in found
    assert (task.metric, task.metrics) == ("accuracy", ("accuracy",))
    mnli = load(layout, "glue/mnli")
    assert task.digest() != mnli.digest()
    assert task.hold_out(3).extra == {}

    files = official.LAYOUT["glue/ax"]()
    full = files.pop("diagnostic/diagnostic-full.tsv")
    bare = load_task("glue/ax", "tsv", official.write(tmp_path / "bare", files))
    assert (list(bare.extra), bare.digest()) == (["mismatched"], mnli.digest())
    del files["diagnostic/diagnostic.tsv"]
    files["diagnostic/other.tsv"] = ""
    with pytest.raises(
        FileNotFoundError, match=r"has no diagnostic\.tsv for glue/ax; it has other"
    ):
        load_task("glue/ax", "tsv", official.write(tmp_path / "other", files))
    files["diagnostic/diagnostic-full.tsv"] = full
    only = load_task("glue/ax", "tsv", official.write(tmp_path / "other", files))
    assert (list(only.extra), only.unlabelled) == (["mismatched", "ax"], {})
    wrong = {"diagnostic/diagnostic-full.tsv": full.replace("\tneutral", "\tneutrl")}
    with pytest.raises(ValueError, match="line 4: 'Label' is 'neutrl', not one of entailment, neu"):
        load_task("glue/ax", "tsv", official.write(tmp_path / "other", wrong))


def test_rows_of_qqp_that_end_early_are_left_out(layout):
    task = load(layout, "glue/qqp")
    assert task.train.texts == tuple(official.sentence(i) for i in range(5))
    assert task.validation.texts == tuple(official.sentence(i) for i in range(5, 8))


def test_copa_is_one_example_for_each_choice(layout):
    task = load(layout, "super_glue/copa")
    assert (len(task.train), task.choices, task.num_outputs) == (12, 2, 2)
    asked = ["What was the cause?", "What happened as a result?"]
    for i in range(6):
        for j, choice in enumerate(["first", "second"]):
            assert task.train.texts[2 * i + j] == f"{official.sentence(i)} {asked[i % 2]}"
            assert task.train.second_texts[2 * i + j] == f"{choice} {i}"
            assert task.train.labels[2 * i + j] == (j == i // 2 % 2)


def test_wic_names_the_word(layout):
    task = load(layout, "super_glue/wic")
    assert task.train.texts[3] == f"word3: {official.sentence(3)}"
    assert task.train.labels.tolist() == [1, 0] * 3


def test_both_tasks_called_rte_are_told_apart(tmp_path):
    official.write(tmp_path / "glue", official.LAYOUT["glue/rte"]())
    official.write(tmp_path / "super_glue", official.LAYOUT["super_glue/rte"]())
    glue, other = (load_task(f"{s}/rte", "tsv", tmp_path) for s in ("glue", "super_glue"))
    assert glue.train.second_texts[0] == official.sentence(40)
    assert other.train.second_texts[0] == official.sentence(1)


@pytest.mark.parametrize("inside", ["", "glue_data", "GLUE"])
@pytest.mark.parametrize("spelt", ["SST-2", "SST2", "sst_2"])
def test_variants_of_the_layout(tmp_path, inside, spelt):
    for path, content in official.sst2().items():
        official.write(tmp_path / inside, {path.replace("SST-2", spelt): content})
    expected = tuple(official.sentence(i) for i in range(7))
    assert load_task("glue/sst2", "tsv", tmp_path).train.texts == expected
    assert load_task("glue/sst2", "tsv", tmp_path / inside / spelt).train.texts == expected


def test_superglue_rows_are_in_the_order_of_their_idx(tmp_path):
    files = official.super_glue("CB")
    rows = files["CB/train.jsonl"].splitlines(keepends=True)
    whole = load_task("super_glue/cb", "tsv", official.write(tmp_path / "a", files))
    files["CB/train.jsonl"] = "".join(reversed(rows))
    turned = load_task("super_glue/cb", "tsv", official.write(tmp_path / "b", files))
    assert turned.digest() == whole.digest()


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_part_is_told_with_what_is_there(tmp_path):
    files = official.sst2()
    files["SST-2/train.subset.tsv"] = files.pop("SST-2/train.tsv")
    official.write(tmp_path, files)
    with pytest.raises(FileNotFoundError) as error:
        load_task("glue/sst2", "tsv", tmp_path)
    assert one_line(error).endswith(
        "has no train.tsv for glue/sst2; it has dev.tsv, test.tsv, train.subset.tsv"
    )
    with pytest.raises(FileNotFoundError, match=r"has no folder CoLA; it has SST-2$"):
        load_task("glue/cola", "tsv", tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_task("glue/cola", "tsv", tmp_path / "nowhere")
    # Another task's own folder is not taken for it.
    with pytest.raises(FileNotFoundError, match="has no folder RTE"):
        load_task("glue/rte", "tsv", tmp_path / "SST-2")


def test_test_parts_may_be_absent(tmp_path):
    files = official.cola()
    del files["CoLA/test.tsv"]
    assert load_task("glue/cola", "tsv", official.write(tmp_path, files)).unlabelled == {}


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
    with pytest.raises(ValueError, match=message) as error:
        load_task("glue/rte", "tsv", official.write(tmp_path, files))
    one_line(error)


def test_other_damage_is_named(tmp_path):
    official.write(tmp_path, official.super_glue("CB"))
    path = tmp_path / "CB" / "train.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(ValueError, match="line 7 is not JSON"):
        load_task("super_glue/cb", "tsv", tmp_path)
    path.write_bytes(json.dumps({"premise": "é"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8"):
        load_task("super_glue/cb", "tsv", tmp_path)


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
        columns = [*values, spec.label]
        path.write_text("\t".join(columns) + "\n" + "\t".join([*values.values(), label]) + "\n")
    if isinstance(expected, str):
        where = rf"{path.name}, line {1 if path.suffix == '.jsonl' else 2}: {expected}"
        with pytest.raises(ValueError, match=where) as error:
            read_part(path, spec, spec.parts[0])
        one_line(error)
    else:
        (record,) = read_part(path, spec, spec.parts[0])
        assert (record.label, type(record.label)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "source", "folder", "message"),
    [
        ("glue/colla", "tsv", "x", "unknown data.name 'glue/colla'; nearest: 'glue/cola'"),
        (
            "imdb",
            "tsv",
            "x",
            r"unknown data.name 'imdb': there are rotten_tomatoes, glue/cola, .*own_data",
        ),
        ("glue/cola", "tvs", "x", "unknown data.source 'tvs'; nearest: 'tsv'"),
        ("glue/cola", "demo", None, "'glue/cola' is not of source 'demo' but of 'tsv' or 'tfds'"),
        ("rotten_tomatoes", "tsv", "x", "'rotten_tomatoes' is not of source 'tsv' but of 'demo'"),
        ("glue/cola", "tsv", None, "data.source 'tsv' needs data.folder"),
        ("rotten_tomatoes", "demo", "x", "data.folder: source 'demo' is a wheel"),
    ],
)
def test_unknown_names_get_the_nearest(name, source, folder, message):
    with pytest.raises(ValueError, match=message) as error:
        load_task(name, source, folder)
    one_line(error)


def test_files_of_a_source_that_reads_none_are_refused():
    with pytest.raises(
        ValueError, match=r"^data.files.train: source 'tsv' reads no files of your own"
    ):
        load_task("glue/cola", "tsv", "x", {"train": "mine.tsv", "text": ""})


def test_validation_can_be_held_out_of_train(layout):
    whole = load(layout, "glue/mnli")
    task = load_task("glue/mnli", "tsv", layout / "glue", validation=3)
    assert sorted(task.train.texts + task.validation.texts) == sorted(whole.train.texts)
    assert sorted(task.validation.labels) == [0, 1, 2]
    assert not set(map(normalise, task.validation.texts)) & set(map(normalise, task.train.texts))
    assert task.extra == {}  # a development part as well
    assert np.array_equal(list(task.unlabelled), ["test_matched", "test_mismatched"])
