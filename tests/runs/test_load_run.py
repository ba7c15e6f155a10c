"""A finished run answers new texts: in Python, and by the command."""

import csv
import dataclasses
import json

import commands
import jax
import numpy as np
import official
import pytest
import small_language
import small_model
import text_runs
from completed_run import completed

from configs import glue, own_data
from experiments import load_run
from experiments.runs import generated_texts, new_texts, predictions
from experiments.runs.run import run
from experiments.setup.config import parse
from experiments.setup.load import read_texts
from lora_jax.records import run_record

pytestmark = pytest.mark.usefixtures("standard_promotion")
COLOURS = ("blue", "green", "red")  # classes are sorted


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model.write(tmp_path_factory.mktemp("model") / "bert")


def own(model, path, columns, **changes):
    """The config of a run of 4 steps on a file of one's own."""
    made = own_data.get_config(f"train={path},held_out=12,{columns},size=smoke")
    small = {"model.name": str(model), "data.max_length": 24, "data.buckets": 1, "data.train": 0}
    small |= {"train.batch_size": 8, "train.max_steps": 4, **changes}
    made.update_from_flattened_dict(small)
    return parse(made.to_dict())


def write(path, *rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def coloured(path):
    rows = [(official.sentence(i), COLOURS[i % 3]) for i in range(48)]
    return write(path, ("review", "colour"), *rows)


@dataclasses.dataclass
class Ended:
    """The folder of a run whose data is gone, and the texts that its stored outputs are of."""

    folder: object
    texts: list
    outputs: np.ndarray


def ended(folder, config, path):
    with jax.numpy_dtype_promotion("standard"):
        assert run(config, folder).status == "completed"
        part = read_texts(config).task.validation
    path.unlink()
    pairs = part.second_texts and list(zip(part.texts, part.second_texts, strict=True))
    return Ended(folder, pairs or list(part.texts), predictions.read(folder)["validation"].outputs)


@pytest.fixture(scope="module")
def classes(model, tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    path = coloured(root / "train.csv")
    return ended(root / "run", own(model, path, "text=review,label=colour"), path)


@pytest.fixture(scope="module")
def classify(classes):
    return load_run(classes.folder)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_run_predicts_what_it_has_stored(classes, classify):
    """Merged or not, whatever else is in the batch; and each answer is the likeliest class."""
    assert run_record.read(classes.folder).label_names == [*COLOURS] == [*classify.labels]
    close(classify.outputs(classes.texts), classes.outputs)
    close(classify.outputs(classes.texts[3:4]), classes.outputs[3:4])
    merged = load_run(classes.folder, merged=True, batch_size=5)
    close(merged.outputs(classes.texts), classes.outputs)
    shares = np.exp(classes.outputs) / np.exp(classes.outputs).sum(axis=1, keepdims=True)
    close(classify.probabilities(classes.texts), shares)
    assert classify(classes.texts) == [COLOURS[each] for each in shares.argmax(axis=1)]


def test_texts_are_cut_to_the_length_that_is_asked_for(classes, classify):
    long = " ".join(classes.texts)
    with pytest.warns(UserWarning, match="1 of 2 texts is cut to 24 tokens"):
        expected = classify.outputs([long, "short"])
    with pytest.warns(UserWarning, match="1 of 2 texts is cut to 12 tokens"):
        shorter = load_run(classes.folder, max_length=12).outputs([long, "short"])
    close(shorter[1], expected[1])
    assert abs(shorter[0] - expected[0]).max() > 1e-4
    with pytest.raises(ValueError, match="max_length 513: the model takes at most 512 tokens"):
        load_run(classes.folder, max_length=513)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("one text", "not str"),
        (None, "not NoneType"),
        ({"review": ["a"]}, "not dict"),
        ([("a", "pair")], r"entry 0 is \('a', 'pair'\), not a text"),
        (["a", None], "entry 1 is None, not a text"),
        (["a", 3.5], "entry 1 is 3.5, not a text"),
    ],
)
def test_texts_of_another_kind_are_refused(classify, texts, said):
    with pytest.raises(ValueError, match=f"^expected a list of texts[:,] {said}$"):
        classify(texts)


def test_no_texts_have_no_answers(classify):
    assert (classify([]), classify.probabilities([]).shape) == ([], (0, 3))


def test_a_loaded_run_says_in_one_line_what_it_is(model, classes, classify):
    said = f"LoadedRun({classes.folder}: lora, on {model}; own, predicts 3 classes)"
    assert repr(classify) == said


@pytest.mark.parametrize(
    ("place", "options", "said"),
    [
        ("run/record.json", {}, "record.json is a file: give the folder of a run, .*run$"),
        (".", {}, "is not the folder of a run: it has no config.json; the runs in it: run$"),
        ("run", {"batch_size": 0}, "batch_size is 0, not a whole number of at least 1"),
        ("run", {"max_length": "12"}, "max_length is '12', not a whole number"),
    ],
)
def test_wrong_arguments_are_named(classes, place, options, said):
    with pytest.raises(ValueError, match=said):
        load_run(classes.folder.parent / place, **options)


@pytest.mark.parametrize(
    "variant",
    [
        {"name": "lora"},
        pytest.param({"name": "adalora", "target_rank": 2}, marks=pytest.mark.slow),
        pytest.param({"name": "eva"}, marks=pytest.mark.slow),
        pytest.param({"name": "lora_ga"}, marks=pytest.mark.slow),
    ],
    ids=lambda each: each["name"],
)
def test_numbers_of_pairs(model, tmp_path, variant):
    """Also of methods whose start comes from data, and whose ranks come from the steps."""
    rows = [(official.sentence(i), official.sentence(7 * i), i % 5 + 0.5) for i in range(48)]
    path = write(tmp_path / "train.csv", ("one", "other", "score"), *rows)
    settings = {f"variant.{key}": value for key, value in variant.items() if key != "name"}
    columns = f"text=one,second_text=other,label=score,variant={variant['name']}"
    own_run = ended(tmp_path / "run", own(model, path, columns, **settings), path)
    assert run_record.read(own_run.folder).label_names == []
    predict = load_run(own_run.folder)
    close(predict(own_run.texts), own_run.outputs[:, 0])
    for wrong in ("alone", ("a", "b", "c"), ("a", None), 3):
        with pytest.raises(ValueError, match=r"of pairs of texts: entry 0 is .*, not a pair of"):
            predict([wrong])
    with pytest.raises(ValueError, match="has no classes: it predicts numbers"):
        predict.probabilities(own_run.texts)


def test_a_run_of_an_earlier_version(model, tmp_path):
    """Its record does not name the classes: its data does, or else whoever asks."""
    path = coloured(tmp_path / "train.csv")
    config = own(model, path, "text=review,label=colour")
    folder, experiment, trainable = completed(config, tmp_path / "run")
    content = json.loads((folder / "record.json").read_text())
    for name in ("label_names", "seal"):
        del content[name]
    (folder / "record.json").write_text(json.dumps(content))
    expected = experiment.outputs(experiment.adapted_call(trainable), "validation")
    texts = experiment.texts.task.validation.texts
    from_data = load_run(folder)
    assert from_data.labels == COLOURS
    close(from_data.outputs(texts), expected)
    path.write_text(path.read_text() + "one more,red\n")
    with pytest.raises(ValueError, match="the data have changed: give all 3 names in the order"):
        load_run(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"data cannot be read \(there is no file .*--labels=A,B"):
        load_run(folder)
    with pytest.raises(ValueError, match=r"--labels=a,b: .* has 3 different classes"):
        load_run(folder, labels=["a", "b"])
    named = load_run(folder, labels=["a", "b", "c"])
    assert named.labels == ("a", "b", "c")
    close(named.outputs(texts), expected)


def test_a_language_model_writes(tmp_path):
    """As it does for its own record: in the template that it was trained in."""
    places = small_language.write_places(tmp_path)
    config = text_runs.config(places, data__template="chat", generate__max_new_tokens=8)
    folder, experiment, trainable = completed(config, tmp_path / "run")
    asked = small_language.questions(6, seed=5)
    source = tmp_path / "asked.json"
    source.write_text(json.dumps([{"instruction": each["instruction"]} for each in asked]))
    (tmp_path / "wrong.csv").write_text("text,n\nhi,1\n")
    with pytest.raises(ValueError, match="no column 'prompt' or 'instruction'; it has 'text', 'n'"):
        new_texts.read(tmp_path / "wrong.csv", config)
    (places / "sets").rename(tmp_path / "away")
    rendered = [f"<user>{each['instruction']}<end><assistant>" for each in asked]
    expected = generated_texts.write(experiment, trainable, rendered)
    for merged in (False, True):
        write_on = load_run(folder, merged=merged, batch_size=4)
        assert write_on([each["instruction"] for each in asked]) == expected
    with pytest.raises(ValueError, match="has no classes: it predicts texts"):
        write_on.probabilities(["text"])
    assert write_on([]) == []
    with pytest.warns(UserWarning, match="1 of 2 prompts is cut to 20 tokens, at the beginning"):
        load_run(folder, max_length=20)(["word " * 40, "hi"])
    lines = objects_in(predicted(folder, source, tmp_path / "out.jsonl"))
    assert [each["prediction"] for each in lines] == expected
    assert [each["instruction"] for each in lines] == [each["instruction"] for each in asked]


def command(folder, source, out, *flags):
    line = (f"--run={folder}", f"--input={source}", f"--out={out}", *flags)
    return commands.run("experiments.predict", *line, **commands.with_devices(1))


def predicted(*arguments):
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    return arguments[2]


def objects_in(path):
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def test_the_command_writes_a_row_for_each_text(classes, classify, tmp_path):
    texts = ['with "quotes", commas', "two\nlines", *classes.texts]
    source = write(tmp_path / "new.csv", ("id", "review"), *enumerate(texts))
    out = predicted(classes.folder, source, tmp_path / "made" / "out.csv")
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [f"probability_{colour}" for colour in COLOURS]
    assert [*rows[0]] == ["id", "review", "prediction", *names]
    assert [row["review"] for row in rows] == texts
    assert [row["prediction"] for row in rows] == classify(texts)
    close([[float(row[name]) for name in names] for row in rows], classify.probabilities(texts))
    before = out.read_bytes()
    out.write_text(",".join(rows[0]) + "\n" + "1,x,red,0,0,1\n")  # of other rows
    assert predicted(classes.folder, source, out, "--merged", "--batch_size=3").exists()
    assert len(out.read_bytes().splitlines()) == len(before.splitlines())


@pytest.mark.parametrize(
    ("content", "out", "said"),
    [
        ("reviews\nx\n", "out.csv", "new.csv, line 2: no column 'review'; nearest: 'reviews'"),
        ("review\n", "out.csv", "new.csv has no rows"),
        ("review,prediction\nx,y\n", "out.csv", "has a column 'prediction' already: rename it"),
        ("review\nx\n", "new.csv", "is the file of --input: name another"),
        ("review\nx\n", "mine.csv", "exists, without the columns of these predictions"),
        ("review\nx\n", "header.csv", "exists, without the columns of these predictions"),
        ("review\nx\n", "out.txt", "out.txt is not named .csv or .jsonl"),
    ],
)
def test_mistakes_end_before_the_model_is_loaded(classes, tmp_path, content, out, said):
    source, mine = tmp_path / "new.csv", tmp_path / "mine.csv"
    source.write_text(content)
    mine.write_text("review\nmine\n")
    (tmp_path / "header.csv").write_text("review\n")
    done = command(classes.folder, source, tmp_path / out)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert (source.read_text(), mine.read_text()) == (content, "review\nmine\n")


def test_rows_with_an_empty_text_are_predicted_and_named(model, tmp_path):
    """An empty cell, spaces and a null of JSON are each an empty text."""
    config = own(model, "train.csv", "text=review,second_text=other,label=colour")
    source = tmp_path / "new.jsonl"
    lines = [("a", "b"), ("", "b"), ("a", None), (" ", "b")]
    source.write_text("".join(json.dumps({"review": r, "other": o}) + "\n" for r, o in lines))
    with pytest.warns(UserWarning, match=r"new\.jsonl: lines 2, 3 and 4 have an empty text$"):
        found = new_texts.read(source, config)
    assert found.texts == [(r, o or "") for r, o in lines]
    assert found.rows[2].values == {"review": "a", "other": None}
    source.write_text('{"review": "", "other": "b"}\n' * 8)
    with pytest.warns(UserWarning, match=r"lines 1, 2, 3, 4, 5 and 3 more have an empty text$"):
        new_texts.read(source, config)
    write(tmp_path / "other.csv", ("id", "reviews", "date"), (1, "x", "today"))
    nearest = r"no column 'review'; nearest: 'reviews'; it has 'id', 'reviews', 'date'$"
    with pytest.raises(ValueError, match=nearest):
        new_texts.read(tmp_path / "other.csv", config)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": None, "instruction": "x"}, "prompt"),
        ({"instruction": " ", "input": "x"}, "instruction"),
    ],
)
def test_an_empty_prompt_is_refused(tmp_path, row, name):
    config = text_runs.config(tmp_path)
    source = tmp_path / "new.jsonl"
    source.write_text(f'{{"prompt": "a"}}\n{json.dumps(row)}\n')
    with pytest.raises(ValueError, match=rf"new\.jsonl, line 2: '{name}' is empty: write one, or"):
        new_texts.read(source, config)


def test_a_folder_that_is_no_finished_run_is_refused(classes, tmp_path):
    source = write(tmp_path / "new.csv", ("review",), ("x",))
    done = command(classes.folder.with_name("rum"), source, tmp_path / "out.csv")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no such folder; nearest" in done.stderr and "'run'" in done.stderr


def test_columns_of_a_benchmark(model, tmp_path):
    """A row of COPA has two choices: its prediction is the likelier one."""
    places = official.write(tmp_path, official.mrpc() | official.super_glue("COPA"))
    for task, file in (("mrpc", "MRPC/test.tsv"), ("copa", "COPA/test.jsonl")):
        made = glue.get_config(f"task={task},source=tsv,folder={places},size=smoke")
        small = {"model.name": str(model), "data.max_length": 48, "data.buckets": 1}
        made.update_from_flattened_dict({**small, "data.train": 0, "train.batch_size": 4})
        config = parse(made.to_dict())
        folder, experiment, trainable = completed(config, tmp_path / task)
        expected = experiment.outputs(experiment.adapted_call(trainable), "test")
        out = predicted(folder, places / file, tmp_path / f"{task}.jsonl")
        rows = objects_in(out)
        names = experiment.texts.task.label_names
        if task == "copa":
            expected, names = (
                (expected[:, 1] - expected[:, 0]).reshape(-1, 2),
                ("choice1", "choice2"),
            )
        shares = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
        close([[row[f"probability_{each}"] for each in names] for row in rows], shares)
        assert [row["prediction"] for row in rows] == [names[each] for each in shares.argmax(1)]
