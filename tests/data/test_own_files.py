"""Data sets of one's own: the same rows from every format, and lines that name what is wrong."""

import contextlib
import csv
import json
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from one_line import refuses

from lora_jax.data import load_task
from lora_jax.data.sources.rows import read_rows

TEXTS = ["It 'is', so", "a\u2028b", "café", "four", "five", "six ", "seven", "eight"]


def write(path, header, rows):
    """The rows in the format that the file's name asks for."""
    if path.suffix == ".jsonl":
        content = "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    else:
        lines = ["\t".join(map(str, row)) for row in [header, *rows]]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def load(folder, name, **more):
    """A file of texts `x` with labels `y`, as train and validation."""
    files = {"train": name, "validation": name, "text": "x", "label": "y", **more}
    return load_task("mine", "files", folder, files)


def task_of(folder, labels, held=("a", "b"), suffix=".tsv", **more):
    """A task of one text column, with these labels in train and `held` in validation."""
    train = [[TEXTS[i % 8] + str(i), label] for i, label in enumerate(labels)]
    held_out = [[f"held {i}", label] for i, label in enumerate(held)]
    files = {
        "train": write(folder / f"train{suffix}", ["sentence", "class"], train),
        "validation": write(folder / f"dev{suffix}", ["sentence", "class"], held_out),
        "text": "sentence",
        "second_text": "",
        "label": "class",
    }
    return load_task("mine", "files", files={**files, **more})


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_every_format_gives_the_same(tmp_path, suffix):
    task = task_of(tmp_path, ["b", "a", "b", "c"], suffix=suffix)
    assert task.train.texts == tuple(TEXTS[i] + str(i) for i in range(4))
    assert task.train.labels.tolist() == [1, 0, 1, 2]
    assert task.label_names == ("a", "b", "c")
    assert task.validation.labels.tolist() == [0, 1]
    assert (task.metric, task.metrics) == ("accuracy", ("accuracy", "f1"))


def test_csv_is_quoted_and_tsv_is_not(tmp_path):
    (tmp_path / "t.csv").write_text('x,y\n"a, ""b""\nc",1\nd,0\n', encoding="utf-8-sig")
    (tmp_path / "t.tsv").write_text('x\ty\n"a\t1\nd"\t0\n', encoding="utf-8-sig")
    assert load(tmp_path, "t.csv").train.texts == ('a, "b"\nc', "d")
    assert load(tmp_path, "t.tsv").train.texts == ('"a', 'd"')


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_carriage_return_in_a_line_of_tsv_ends_no_row(tmp_path, end):
    """It cut an example in two; at the end of a line it is the end, as Windows has it."""
    lines = ["x\ty", "one\rtwo\t1", "", '"three\t0', ""]
    (tmp_path / "t.tsv").write_text(end.join(lines), encoding="utf-8-sig", newline="")
    found, path = read_rows(tmp_path / "t.tsv"), tmp_path / "t.tsv"
    assert [row.where for row in found] == [f"{path}, line 2", f"{path}, line 4"]
    assert [row.values for row in found] == [{"x": "one\rtwo", "y": "1"}, {"x": '"three', "y": "0"}]
    (tmp_path / "t.tsv").write_text(end.join(["x\ty", "one\ttwo\t1", ""]), newline="")
    refuses(r"line 2: 3 columns, the header has 2$", read_rows, tmp_path / "t.tsv")
    (tmp_path / "t.tsv").write_text("x\ty\rone\t1\r", newline="")
    said = "lines end in carriage returns; write line feeds instead"
    refuses(said, read_rows, tmp_path / "t.tsv")


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["10", "9", "10", "2"], ("2", "9", "10"), [2, 1, 2, 0]),
        (["1.0", "0.0", "1.0", "0"], ("0", "1"), [1, 0, 1, 0]),
        (["-1", "1", "1", "-1"], ("-1", "1"), [0, 1, 1, 0]),
        (["2", "many", "2", "many"], ("2", "many"), [0, 1, 0, 1]),
        (["007", "7", "bond", "q"], ("007", "7", "bond", "q"), [0, 1, 2, 3]),
        (["01", "1", "02"], ("01", "1", "02"), [0, 1, 2]),
        (["+1", "-1", "1.0", "-1e0"], ("-1", "1"), [1, 0, 1, 0]),
        (["cafe\u0301", "tea"] * 2, ("cafe\u0301", "tea"), [0, 1, 0, 1]),
        (["0x1", "1_0", "inf", "٣"], ("0x1", "1_0", "inf", "٣"), [0, 1, 2, 3]),  # no number
        (["a", "می\u200cرود"], ("a", "می\u200cرود"), [0, 1]),
    ],
)
def test_classes_are_numbers_or_names_in_order(tmp_path, labels, names, numbers):
    task = task_of(tmp_path, labels, held=labels[:2])
    assert (task.label_names, task.train.labels.tolist()) == (names, numbers)


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        ([3, 1, 3], ("1", "3"), [1, 0, 1]),
        ([0.5, 1, 3], None, [0.5, 1.0, 3.0]),
    ],
)
def test_json_labels_need_not_be_text(tmp_path, labels, names, numbers):
    task = task_of(tmp_path, labels, held=labels[:2], suffix=".jsonl")
    assert (task.label_names, task.train.labels.tolist()) == (names, numbers)


IDS = ["9007199254740993", "9007199254740992", "9007199254740994"]  # two of them one float


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
@pytest.mark.parametrize("end", ["", ".0"])
def test_ids_beyond_floats_are_classes_of_their_own(tmp_path, suffix, end):
    labels = [each + end for each in IDS]
    if suffix == ".jsonl":  # numbers, and no text in quotes
        for name in ("train", "dev"):
            rows = [
                f'{{"sentence": "{name} {i}", "class": {each}}}' for i, each in enumerate(labels)
            ]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
        files = {"train": "train.jsonl", "validation": "dev.jsonl", "text": "sentence"}
        task = load_task("mine", "files", tmp_path, {**files, "label": "class"})
    else:
        task = task_of(tmp_path, labels, held=labels, suffix=suffix)
    assert task.label_names == tuple(sorted(IDS))
    assert task.train.labels.tolist() == [1, 0, 2]


def test_names_that_look_alike_are_not_two_classes(tmp_path):
    """An accent of its own (U+0301) is no other letter."""
    said = r"train\.tsv, line 3: label 'cafe\\u0301' looks like 'ca"
    refuses(said, task_of, tmp_path, ["caf\u00e9", "cafe\u0301", "tea"])


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
@pytest.mark.parametrize(
    "label",
    ["inf", "-Infinity", "1e400", "1_0", "٣", "１", "O", "n/a", "1\u200b", "\u200b", "1\xa00"],
)
def test_among_numbers_nothing_else_becomes_a_class(tmp_path, label, suffix):
    first = 1 if suffix == ".jsonl" else 2  # the line of the first row
    where, labels = f"train{suffix}, line {first + 2}: ", ["1", "0", label, "1"]
    said = refuses(where, task_of, tmp_path, labels, held=["1", "0"], suffix=suffix)
    assert label in said or ascii(label) in said
    if label not in ("O", "n/a"):  # of which one beside one number may be a class
        refuses(".", task_of, tmp_path, ["1", label], held=["1"], suffix=suffix)
        other = f"a{label[1:]}" if "\u200b" in label else "1"
        refuses(".", task_of, tmp_path, [other, label], held=["1"])


@pytest.mark.parametrize("target", ["1e-400", "-1e-40", "1e39", "1e400"])
def test_targets_that_training_would_see_as_others_are_refused(tmp_path, target):
    for more in ({}, {"regression": True}):
        labels = ["0.5", "1", target]
        refuses("train.tsv, line 4: label '", task_of, tmp_path, labels, held=["1", "2"], **more)
    said = "dev.tsv, line 3: label '.*' is not a number in the range of float32$"
    refuses(said, task_of, tmp_path, ["0.5", "1"], held=["1", target])


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text("0123456789_.eE+-x٣ ,", min_size=1, max_size=6)
    | st.sampled_from(["inf", "-Infinity", "nan", "1e999", "1e-9999", "１.５", "1.5\u2028"])
)
def test_targets_are_what_other_readers_of_numbers_read(tmp_path, text):
    """Every target is Python's number for a text that JSON has too; all else names its line."""
    try:
        task = task_of(
            tmp_path, ["0.5", text, "7"], held=["1", "2"], suffix=".jsonl", regression=True
        )
    except ValueError as error:
        said = str(error)
        assert "train.jsonl, line 2: " in said and "\n" not in said
        with contextlib.suppress(ValueError):  # a number of JSON is refused beyond float32 alone
            value = abs(json.loads(text, parse_float=Decimal))
            assert text != text.strip() or (value and not 1.2e-38 < value < 3.4e38)
    else:
        assert task.train.labels.tolist() == [0.5, float(text), 7]
        assert text.isascii()
        assert not set(text) & set("_ x")


def test_fractions_make_a_regression_and_whole_numbers_if_asked(tmp_path):
    task = task_of(tmp_path, ["1", "2.5", "3"], held=["4", "9"])
    assert (task.label_names, task.metric) == (None, "pearson")
    assert task.validation.labels.tolist() == [4.0, 9.0]
    task = task_of(tmp_path, ["1", "2", "3"], held=["4", "9"], regression=True)
    assert (task.label_names, task.train.labels.tolist()) == (None, [1.0, 2.0, 3.0])
    said = "train.tsv, line 3: label 'x' is not a number"
    refuses(said, task_of, tmp_path, ["1", "x", "3"], regression=True)


def test_pairs_and_a_part_to_predict(tmp_path):
    rows = [[f"one {i}", f"two {i}", i % 2] for i in range(4)]
    files = {
        "train": write(tmp_path / "a.jsonl", ["p", "h", "y"], rows),
        "validation": write(tmp_path / "b.csv", ["p", "h", "y"], rows),
        "test": write(tmp_path / "c.tsv", ["p", "h"], [row[:2] for row in rows[:3]]),
        "text": "p",
        "second_text": "h",
        "label": "y",
    }
    task = load_task("mine", "files", files=files)
    assert task.train.second_texts == tuple(f"two {i}" for i in range(4))
    assert task.unlabelled["test"].labels is None
    assert len(task.unlabelled["test"]) == 3


@pytest.mark.parametrize("labels", [["a", "b"] * 10, [str(i / 4) for i in range(20)]])
def test_without_a_validation_file_some_of_train_is_held_out(tmp_path, labels):
    whole = task_of(tmp_path, labels, held=labels[:2])
    task = load_task(
        "mine",
        "files",
        files={"train": str(tmp_path / "train.tsv"), "text": "sentence", "label": "class"},
        validation=6,
    )
    assert (len(task.train), len(task.validation)) == (14, 6)
    assert sorted(task.train.texts + task.validation.texts) == sorted(whole.train.texts)
    if task.label_names:
        assert np.bincount(task.validation.labels).tolist() == [3, 3]


@pytest.mark.parametrize("label", ["ab", "01", "regression"])
def test_texts_of_symbols_are_different_texts(tmp_path, label):
    texts = [chr(0x1F600 + i) for i in range(20)]
    labels = [str(i / 4) if label == "regression" else label[i % 2] for i in range(20)]
    train = write(tmp_path / "t.csv", ["x", "y"], list(zip(texts, labels, strict=True)))
    task = load_task(
        "mine", "files", files={"train": train, "text": "x", "label": "y"}, validation=6
    )
    assert sorted(task.train.texts + task.validation.texts) == texts
    assert len(set(task.few(6, 1).train.texts)) == len(task.few(6).train) == 6


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("labels", "more", "file", "row", "message"),
    [
        ("ab", {"text": "sentense"}, "train", 0, "no column 'sentense'; nearest: 'sentence'"),
        ("ab", {"label": "clas"}, "train", 0, "no column 'clas'; nearest: 'class'"),
        (["a", " b"], {}, "train", 1, "'class' is ' b', with spaces around it$"),
        (["a", "b", ""], {}, "train", 2, "no label in 'class'$"),
        (["a", "b", "nan"], {}, "train", 2, "no label in 'class'$"),
        (["a", "b", " "], {}, "train", 2, "no label in 'class'$"),
        ("gb", {"held": "gx"}, "dev", 1, "label 'x', which train does not have; nearest: "),
        ("123", {"held": ["1", "2.5"]}, "dev", 1, "label '2.5', .*; nearest: '2' .data.files.reg"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, suffix, labels, more, file, row, message):
    line = row + (1 if suffix == ".jsonl" else 2)
    said = f"{file}{suffix}, line {line}: {message}"
    refuses(said, task_of, tmp_path, labels, suffix=suffix, **more)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", "x\ty\nx\ta\tb\n", "line 2: 3 columns, the header has 2"),
        ("t.tsv", "x\ty\nx\n", "line 2: 1 column, the header has 2"),
        ("t.csv", 'x,y\nx,a\n"y,b\n', "line 3: a quoted field begins in this row and has no end"),
        ("t.csv", 'x,y\n"a\nb",1\n\nc,\n', "line 5: no label"),  # counted over quoted line ends
        ("t.csv", "x,y\n", "has no rows"),
        ("t.csv", "x;y\nx;a\n", "'; nearest: 'x;y'; commas separate the columns of a "),
        ("t.csv", "x,y,x\nx,a,y\n", "two columns are called 'x'"),
        ("t.csv", "x,y\nx,a\ny,a\n", "t.csv: all labels in 'y' are 'a'; there is"),
        ("t.csv", "x,y\nx,0.5\ny,n/a\n", "line 3: label 'n/a' is not a number, but oth"),
        ("t.csv", "x,y\nx,0.5\ny,inf\n", "line 3: label 'inf' is not a number, but oth"),
        ("t.jsonl", '{"x": "x", "y": "a"}\n[1]\n', "line 2 is not a JSON object"),
        ("t.jsonl", '{"x": null, "y": "a"}\n', "line 1: 'x' is None, not a text"),
        ("t.jsonl", '{"x": "x", "y": null}\n', "line 1: no label in 'y'"),
        ("t.jsonl", '{"x": "x", "y": ["a"]}\n', r"line 1: 'y' is \['a'\], not one"),
        ("t.jsonl", '{"x": "\\ud83d", "y": 1}\n', "line 1: 'x' has half of a sur"),
        ("t.jsonl", '{"x": "x", "y": "\\ud83d"}\n', "line 1: 'y' has half of a sur"),
        ("t.jsonl", '{"x": "x", "y": NaN}\n', "line 1 is not JSON: NaN is not a number"),
        ("t.jsonl", '{"x": "x", "y": 1e400}\n', "line 1 is not JSON: the number 1e400"),
        ("t.jsonl", '{"x": 0.10, "y": 1}\n', r"line 1: 'x' is 0\.10, not a text"),
        ("t.jsonl", "[" * 9999 + "\n", "line 1 is nested deeper than 100 levels"),
        ("t.parquet", "", r"is not named \.tsv, \.csv or \.jsonl"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    refuses(message, load, tmp_path, name)


@pytest.mark.parametrize("name", ["t.tsv", "t.csv", "t.jsonl", "T.CSV"])
def test_a_text_may_be_long_and_a_suffix_in_capitals(tmp_path, name):
    text = "word " * 40_000  # more than the csv module takes by itself
    path = tmp_path / name
    write(path.with_suffix(path.suffix.lower()), ["x", "y"], [[text, "0"], ["b", "1"]])
    path.with_suffix(path.suffix.lower()).rename(path)
    assert load(tmp_path, name).train.texts == (text, "b")


def test_another_domain_is_one_more_file(tmp_path):
    other = write(tmp_path / "other.csv", ["sentence", "class"], [["new", "b"], ["old", "a"]])
    task = task_of(tmp_path, ["a", "b"], extra=other)
    assert task.extra["extra"].texts == ("new", "old")
    assert task.extra["extra"].labels.tolist() == [1, 0]
    write(tmp_path / "other.csv", ["sentence", "class"], [["new", "c"]])
    said = "other.csv, line 2: label 'c', which train does not have"
    refuses(said, task_of, tmp_path, ["a", "b"], extra=other)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "^give train=FILE \\(data.files.train\\)$"),
        ({"train": "x", "text": "t"}, "^give label=COLUMN "),
        ({"train": "x.tsv", "text": "t", "label": "y"}, "^there is no file x.tsv$"),
        (
            {"train": "x", "text": "t", "label": "t"},
            r"data\.files\.text and data\.files\.label are the same column, 't'",
        ),
        (
            {"train": "x", "text": "t", "second_text": "y", "label": "y"},
            r"data\.files\.second_text and data\.files\.label are the same column, 'y'",
        ),
        ({"trian": "x"}, "data.files has no 'trian'; nearest: 'train'"),
        (
            {"train": "x.tsv", "validation": "x.tsv", "text": "t", "label": "y"},
            "there is no file",
        ),
    ],
)
def test_what_is_not_named_is_asked_for(files, message):
    refuses(message, load_task, "mine", "files", files=files)


def test_what_is_held_out_is_asked_for_as_it_is_written(tmp_path):
    (tmp_path / "t.csv").write_text("x,y\na,1\nb,2\n")
    said = "nothing to score on: give validation=FILE or held_out=500 "
    refuses(said, load, tmp_path, "t.csv", validation="")
