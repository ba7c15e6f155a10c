"""Prompts that are checked, and text-to-text tasks: digests, held-out parts and few-shot draws."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from one_line import refuses

from lora_jax.data import normalise
from lora_jax.data.examples import Prompts, concatenate
from lora_jax.data.task import TextTask


def part(name="train", count=40, choices=3, **more):
    """Questions with options, of which the answers go round; a group for every two."""
    options = [[f"{i} {c}" for c in range(choices)] for i in range(count)]
    return Prompts(
        name,
        [f"{name} {i}?" for i in range(count)],
        [f"c{i}" for i in range(count)],
        options,
        np.arange(count) % choices,
        ids=[str(i) for i in range(count)],
        groups=[str(i // 2) for i in range(count)],
        **more,
    )


def plain(name="train", count=12, **more):
    return Prompts(name, [f"{name} {i}" for i in range(count)], ["x"] * count, **more)


BARE = Prompts("bare", ["a"], None)
TWO = [["x", "y"]] * 2


def test_values_are_kept_as_tuples_and_answers_are_read_only():
    made = Prompts("p", ["a", "b"], None, [["x", "y"], ["x", "y", "z"]], np.array([1, 2], "int8"))
    assert made.options == (("x", "y"), ("x", "y", "z"))
    assert made.answers.dtype == np.int64
    assert made.option_counts.tolist() == [2, 3]
    with pytest.raises(ValueError, match="read-only"):
        made.answers[0] = 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": []}, "'p' is empty"),
        ({"prompts": "ab"}, "prompts is one string, not a list"),
        ({"prompts": ["a", 3]}, r"prompts\[1\] is 3, not a string"),
        ({"completions": ["c"]}, "has 2 prompts but 1 completions"),
        ({"ids": ["1"]}, "has 2 prompts but 1 ids"),
        ({"groups": ["1"]}, "has 2 prompts but 1 groups"),
        ({"answers": np.array([0, 0])}, "options and answers must be given together"),
        ({"options": TWO}, "options and answers must be given together"),
        ({"options": [["x", "y"], "xy"], "answers": [0, 0]}, r"options\[1\] is one string"),
        ({"options": [["x", "y"], ["x"]], "answers": [0, 0]}, r"options\[1\] .* two or more"),
        ({"options": [["x", "x"]] * 2, "answers": [0, 0]}, r"options\[0\] .* distinct"),
        ({"options": [["x", ""]] * 2, "answers": [0, 0]}, r"options\[0\] .* distinct"),
        ({"options": TWO, "answers": [0]}, "2 prompts but 1 answers"),
        ({"options": TWO, "answers": [0, 2]}, "answer 1 is 2, of 2 options"),
        ({"options": TWO, "answers": [-1, 0]}, "answer 0 is -1, of 2 options"),
        ({"options": TWO, "answers": [0.0, 1.0]}, "answers are float64 of shape"),
        ({"references": [["r"], []]}, r"references\[1\] is empty"),
        ({"references": [["r"], [None]]}, r"references\[1\]\[0\] is None, not a string"),
    ],
)
def test_bad_data_is_refused_in_one_line(fields, message):
    refuses(message, Prompts, "p", **{"prompts": ["a", "b"], "completions": None, **fields})


def test_some_examples_and_those_of_several_parts():
    whole = part(count=4, references=[[str(i)] for i in range(4)])
    some = whole.take([3, 1])
    assert (some.prompts, some.completions) == (("train 3?", "train 1?"), ("c3", "c1"))
    assert (some.options[0], some.answers.tolist()) == (("3 0", "3 1", "3 2"), [0, 1])
    assert (some.references, some.ids, some.groups) == ((("3",), ("1",)), ("3", "1"), ("1", "0"))
    refuses("is empty", whole.take, [])
    joined = concatenate("both", [part("a", 3), part("b", 2, choices=2)])
    assert joined.prompts == ("a 0?", "a 1?", "a 2?", "b 0?", "b 1?")
    assert (joined.answers.tolist(), joined.references) == ([0, 1, 2, 0, 1], None)
    said = "only one of 'a' and 'train' has answers, .*, options"
    refuses(said, concatenate, "both", [part("a", 3), plain()])


def test_digests_see_what_training_and_a_tokenizer_see():
    base = part(count=6)
    changed = {
        "prompts": base.prompts[::-1],
        "completions": base.completions[::-1],
        "options": [each[::-1] for each in base.options],
        "answers": (base.answers + 1) % 3,
        "references": [["r"]] * 6,
    }
    variants = [base, *(dataclasses.replace(base, **{k: v}) for k, v in changed.items())]
    assert len({each.digest() for each in variants}) == 6
    texts = [each.text_digest() for each in variants]
    assert len(set(texts)) == 4
    assert texts[0] == texts[4] == texts[5]
    same = dataclasses.replace(base, ids=None, groups=None, name="other")
    assert (same.digest(), same.text_digest()) == (base.digest(), base.text_digest())


def test_metrics_follow_from_the_validation_part():
    task = TextTask("t", part(), part("dev", 6), unlabelled={"test": BARE})
    assert (task.metrics, task.metric) == (("accuracy", "eval_loss"), "accuracy")
    task = TextTask("t", part(), plain("dev", 6))
    assert (task.metrics, task.metric) == (("token_loss", "perplexity"), "token_loss")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "bleu"}, "main metric 'bleu' is not among"),
        ({"train": BARE}, "'bare' of task 't' has nothing to learn"),
        ({"validation": BARE}, "'bare' of task 't' has neither options nor"),
        ({"extra": {"more": BARE}}, "'bare' of task 't' has neither options nor"),
    ],
)
def test_parts_that_do_not_make_a_task_are_refused(change, message):
    refuses(message, TextTask, "t", **{"train": part(), "validation": part(), **change})


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 8])
def test_the_examples_to_score_are_so_many_and_evenly_spaced(size):
    dev, more = plain("dev", 7), plain("more", 5)
    found = TextTask("t", plain(), dev, extra={"more": more}).scored(size)
    for own, whole in ((found.validation, dev), (found.extra["more"], more)):
        places = [whole.prompts.index(prompt) for prompt in own.prompts]
        gaps = np.diff([*places, len(whole)])
        assert places[0] == 0 and len(places) == min(size, len(whole))
        assert gaps.min() > 0 and gaps.max() - gaps.min() <= 1


def test_digest_sees_all_that_changes_a_result():
    task = TextTask("t", part(), part("dev", 6))
    tasks = [
        task,
        dataclasses.replace(task, extra={"a": part("a", 4)}),
        dataclasses.replace(task, extra={"b": part("a", 4)}),
        dataclasses.replace(task, metric="eval_loss"),
        task.hold_out(5),
        task.hold_out(5, seed=1),
        task.few(6),
        task.few(6, draw=1),
    ]
    assert len({each.digest() for each in tasks}) == len(tasks)
    assert task.hold_out(5).digest() == task.hold_out(5).digest()
    unlabelled = dataclasses.replace(task, name="other", unlabelled={"test": plain()})
    assert unlabelled.digest() == task.digest()


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=4, max_size=30),
    st.integers(1, 6),
    st.integers(0, 3),
)
def test_nothing_is_on_both_sides(rows, size, seed):
    """Prompts that differ in case and punctuation alone count as one, and groups stay whole."""
    prompts = [f"Q {q}{'?' * (i % 3)}" if i % 2 else f"q  {q}" for i, (q, _) in enumerate(rows)]
    train = Prompts("train", prompts, ["c"] * len(rows), groups=[str(g) for _, g in rows])
    try:
        held = TextTask("t", train, train).hold_out(size, seed)
    except ValueError as error:
        assert "cannot draw" in str(error) or "leaves none" in str(error)
        return
    assert (len(held.validation), held.extra) == (size, {})

    def places(part):
        return [(normalise(p), g) for p, g in zip(part.prompts, part.groups, strict=True)]

    for column in (0, 1):
        kept, out = ({each[column] for each in places(p)} for p in (held.train, held.validation))
        assert not kept & out
        assert len(out) == size
    # Only what hangs together with something held out has left train.
    linked, reach = set(places(train)), set(places(held.validation))
    while more := {e for e in linked - reach if any(e[0] == r[0] or e[1] == r[1] for r in reach)}:
        reach |= more
    assert len(held.train) == sum(each not in reach for each in places(train))


def test_answers_are_held_out_in_proportion():
    train = dataclasses.replace(part(count=90), groups=None)
    task = TextTask("t", train, part("dev", 6), extra={"e": part("e", 6)})
    for made in (task.hold_out(12, 3).validation, task.few(12, 3).train):
        assert np.bincount(made.answers).tolist() == [4, 4, 4]
        assert [int(each) for each in made.ids] == sorted(int(each) for each in made.ids)
    assert len(task.hold_out(12).train) == 78
    assert task.few(12).extra.keys() == {"e"}
    assert task.few(90) is task
    refuses("'t': cannot draw 91 of 90 different examples of 'train'", task.few, 91)
    said = "'t': 'dev' has options, but 'train' has none to hold out"
    refuses(said, TextTask("t", plain(), part("dev", 6)).hold_out, 2)


def test_held_out_prompts_have_all_their_completions_as_references():
    train = Prompts("train", ["a", "b", "A!", "c", "a"], [" one", " two", " three", " f", " one"])
    task = TextTask("t", train, Prompts("dev", ["z"], [" z"], references=[["z"]]))
    held = task.hold_out(2, seed=0).validation
    expected = {"a": ("one", "three"), "b": ("two",), "c": ("f",)}
    assert len(held) == 2
    assert held.references == tuple(expected[prompt] for prompt in held.prompts)
    assert TextTask("t", train, train).hold_out(2).validation.references is None
    refuses("holding out 3 examples of 'train' leaves none", task.hold_out, 3)
