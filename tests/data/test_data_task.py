"""Texts with labels and their tasks: what is refused, digests, held-out parts, few-shot draws."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from one_line import refuses

from lora_jax.data import Encoded, Examples, Task, collate, plain_split


def examples(labels=(0, 1, 0), name="toy", **kwargs):
    texts = kwargs.pop("texts", [f"text {i}" for i in range(len(labels))])
    return Examples(name, texts, np.array(labels), **kwargs)


def part(name, count, classes=2, **more):
    labels = np.arange(count) % classes if classes else np.arange(count) / 2
    texts = [f"{name} {i}" for i in range(count)]
    return Examples(name, texts, labels, ids=[str(i) for i in range(count)], **more)


def make(classes=2, **more):
    names = tuple("abcdef"[:classes]) if classes else None
    return Task("toy", part("train", 40, classes), part("dev", 10, classes), names, **more)


def copa(questions=12):
    labels = np.array([[1, 0] if i % 3 else [0, 1] for i in range(questions)]).reshape(-1)
    texts = [f"question {i // 2}" for i in range(2 * questions)]
    choices = [f"choice {i}" for i in range(2 * questions)]
    examples = Examples("copa", texts, labels, choices, [str(i) for i in range(2 * questions)])
    return Task("copa", examples, examples, ("wrong", "right"), choices=2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"labels": []}, "'toy' is empty"),
        ({"texts": ["a", "b"]}, "'toy' has 2 texts but 3 labels"),
        ({"second_texts": ["a"]}, "'toy' has 3 texts but 1 second_texts"),
        ({"ids": ["a"] * 4}, "'toy' has 3 texts but 4 ids"),
        ({"texts": ["a", None, "c"]}, r"'toy': texts\[1\] is None, not a string"),
        ({"texts": "abc"}, "'toy': texts is one string"),
        ({"labels": [0.0, np.nan, 1.0]}, "'toy': label 1 is nan"),
        ({"labels": [0.0, 1.0, np.inf]}, "'toy': label 2 is inf"),
        ({"labels": ["yes", "no", "no"]}, "'toy': labels are <U3"),
        ({"labels": [[0], [1], [0]]}, r"'toy': labels have shape \(3, 1\)"),
        ({"labels": np.array([0, 2**64 - 1], np.uint64)}, f"label 1 is {2**64 - 1}, too large"),
    ],
)
def test_bad_examples_are_refused_by_name(kwargs, message):
    refuses(message, examples, **kwargs)


CLASSES = ("no", "yes")
ONE_CLASS = "'toy/bad': all 3 examples to (train on|score) have the label"


@pytest.mark.parametrize(
    ("labels", "label_names", "message"),
    [
        ([0, 0, 0], CLASSES, f"{ONE_CLASS} 'no'"),
        ([1, 1, 1], CLASSES, f"{ONE_CLASS} 'yes'"),
        ([2.5, 2.5, 2.5], None, f"{ONE_CLASS} 2.5"),
        ([0, 2, 1], CLASSES, "'toy/bad': label 1 is 2, not in 0..1"),
        ([0, 1, -1], CLASSES, "'toy/bad': label 2 is -1, not in 0..1"),
        ([0.0, 1.0], CLASSES, "'toy/bad': float labels in a task with classes"),
        ([0, 1], None, "'toy/bad': integer labels in a task without label_names"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_bad_labels_are_refused_in_either_split(labels, label_names, message, split):
    good = examples([0, 1] if label_names else [0.0, 1.0])
    splits = {"train": good, "validation": good, split: examples(labels, name="toy/bad")}
    refuses(message, Task, "toy", label_names=label_names, **splits)


PAIRS = examples(second_texts=["a", "b", "c"])
BARE = Examples("bare", ["a", "b", "c"], None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_names": ()}, "'toy': label_names"),
        ({"label_names": ("one",)}, "'toy': label_names"),
        ({"label_names": ("same", "same")}, "'toy': label_names"),
        ({"validation": PAIRS}, "'toy': only one of train and validation has second_texts"),
        ({"extra": {"pairs": PAIRS}}, "only one of train and pairs has second_texts"),
        ({"train": BARE, "validation": BARE}, "data set 'bare' of task 'toy' has no labels"),
        ({"metric": "f1"}, "'toy': the main metric 'f1' is not among"),
        (
            {"extra_metrics": {"fra": ("f1",)}},
            "extra_metrics has 'fra', which is not an extra part",
        ),
    ],
)
def test_parts_that_do_not_make_a_task_are_refused(change, message):
    fields = {"train": examples(), "validation": examples(), "label_names": CLASSES}
    refuses(message, Task, "toy", **{**fields, **change})


def test_labels_have_one_dtype_and_no_memory_of_the_caller():
    task = Task("toy", examples([0, 2, 1]), examples([True, False]), ("a", "b", "c"))
    assert (task.num_outputs, task.train.labels.dtype) == (3, np.int64)
    task = Task("toy", examples(np.float32([0.5, 4.0])), examples([1.0, 2.0]), None)
    assert (task.num_outputs, task.train.labels.dtype) == (1, np.float64)
    assert examples(np.array([0, 2**63 - 1], np.uint64)).labels.tolist() == [0, 2**63 - 1]
    labels = np.array([0, 1, 0])
    own = Examples("toy", ["a", "b", "c"], labels)
    labels[0] = 1
    assert own.labels.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="read-only"):
        own.labels[0] = 1


def test_take_keeps_everything_together():
    taken = examples([0, 1, 2], second_texts=["x", "y", "z"], ids=["i", "j", "k"]).take([2, 0])
    found = (taken.texts, taken.second_texts, taken.ids, taken.labels.tolist())
    assert found == (("text 2", "text 0"), ("z", "x"), ("k", "i"), [2, 0])
    assert (BARE.take([2, 0]).texts, BARE.take([2, 0]).labels) == (("c", "a"), None)


def test_digests_see_every_change_of_content_and_no_change_of_name():
    made = examples([0, 1], texts=["é", "b"], ids=["i", "j"])
    assert made.digest() == hashlib.sha256(rb'[["\u00e9","b"],null,[0,1]]').hexdigest()
    variants = [
        examples([0, 1], texts=["ab", "c"]),
        examples([0, 1], texts=["a", "bc"]),
        examples([1, 0], texts=["ab", "c"]),
        examples([0.0, 1.0], texts=["ab", "c"]),
        examples([0, 1], texts=["c", "ab"]),
        examples([0, 1], texts=["ab", "c"], second_texts=["x", "y"]),
        examples([0, 1], texts=["x", "y"], second_texts=["ab", "c"]),
        Examples("toy", ["ab", "c"], None),
    ]
    digests = [each.digest() for each in variants]
    assert len(set(digests)) == len(variants)
    assert examples([0, 1], texts=["ab", "c"], name="o", ids=["1", "2"]).digest() == digests[0]


def test_a_tasks_digest_sees_all_that_changes_a_result():
    far = make().with_extra("far", part("far", 4))
    tasks = [
        make(),
        dataclasses.replace(make(), label_names=("b", "a")),
        dataclasses.replace(make(), train=make().validation, validation=make().train),
        make(extra={"other": part("other", 4)}),
        make(extra={"another": part("other", 4)}),
        make(extra={"other": part("other", 5)}),
        make(metrics=("accuracy", "f1")),
        make(metrics=("accuracy", "f1"), metric="f1"),
        make().hold_out(8),
        make().hold_out(8, seed=1),
        make().few(8),
        make().few(8, draw=1),
        far,
        dataclasses.replace(far, extra_metrics={"far": ("matthews",)}),
        copa(),
        dataclasses.replace(copa(), choices=1),
    ]
    assert len({task.digest() for task in tasks}) == len(tasks)
    assert make(unlabelled={"test": BARE}).digest() == make().digest()
    assert make(metrics=("accuracy",), metric="accuracy").digest() == make().digest()
    assert dataclasses.replace(make(), name="other").digest() == make().digest()
    assert (make().metrics, make(None).metrics) == (("accuracy",), ("pearson",))
    assert make(metrics=("matthews", "accuracy")).metric == "matthews"


@pytest.mark.parametrize("classes", [2, 3, None])
@pytest.mark.parametrize("seed", [0, 7])
def test_hold_out_takes_from_train_and_leaves_the_development_parts(classes, seed):
    unlabelled, own = {"test": BARE}, {"other": ("accuracy",) if classes else ("pearson",)}
    task = make(classes, extra={"other": part("other", 6, classes)}, unlabelled=unlabelled)
    held = dataclasses.replace(task, extra_metrics=own).hold_out(9, seed)
    assert (len(held.train), len(held.validation)) == (31, 9)
    assert sorted(held.train.ids + held.validation.ids) == sorted(task.train.ids)
    places = [task.train.texts.index(text) for text in held.validation.texts]
    np.testing.assert_array_equal(held.validation.labels, task.train.labels[places])
    assert (held.extra, held.extra_metrics, held.unlabelled) == ({}, {}, unlabelled)
    assert held.digest() == task.hold_out(9, seed).digest() != task.hold_out(9, seed + 1).digest()
    if classes:
        counts = np.bincount(held.validation.labels)
        assert abs(counts - 9 * np.bincount(task.train.labels) / 40).max() < 1


@settings(max_examples=50)
@given(st.lists(st.integers(0, 12), min_size=4, max_size=40), st.integers(1, 39), st.integers(0, 9))
def test_a_plain_split_has_no_text_in_both_parts(words, size, seed):
    styles = ["w{}", "W{} !"]
    texts = [styles[i % 2].format(word) for i, word in enumerate(words)]
    drawn = Examples("drawn", texts, np.arange(len(words)) / 3, ids=list(map(str, words)))
    single = sum(words.count(word) == 1 for word in words)
    if size >= len(words) or size > single:
        refuses("'drawn'", plain_split, drawn, size, seed)
        return
    rest, held = plain_split(drawn, size, seed)
    assert len(held) == size == len(set(held.ids))
    assert not set(rest.ids) & set(held.ids)
    assert sorted(rest.labels.tolist() + held.labels.tolist()) == drawn.labels.tolist()


def test_few_is_stratified_and_each_draw_its_own():
    task = make(extra={"other": part("other", 6)})
    draws = [task.few(10, draw) for draw in range(5)]
    for few in draws:
        assert np.bincount(few.train.labels).tolist() == [5, 5]
        assert set(few.train.ids) <= set(task.train.ids)
        assert (few.validation, few.extra) == (task.validation, task.extra)
    assert len({few.train.ids for few in draws}) == 5
    assert task.few(10, 3).train.ids == draws[3].train.ids
    assert task.few(40) is task
    assert len(make(None).few(7).train) == 7
    assert make(None).few(7).train.ids != make(None).few(7, 1).train.ids
    for size in (0, 41):
        refuses(f"cannot draw {size} of 40 examples of 'train'", task.few, size)


def test_choices_stay_together():
    task = copa()
    for cut in (task.hold_out(6), task.hold_out(3, seed=2), task.few(6, draw=1)):
        for each in {cut.train, cut.validation}:
            ids = np.array(each.ids, int).reshape(-1, 2)
            assert (ids[:, 0] % 2 == 0).all()
            assert (ids[:, 1] == ids[:, 0] + 1).all()
            assert (each.labels.reshape(-1, 2).sum(1) == 1).all()
    held = task.hold_out(6).validation
    assert len(held) == 12  # six questions
    assert held.labels.reshape(-1, 2).argmax(1).sum() == 2  # a third, as in train
    said = "'toy': each 2 examples in a row must have exactly one right"
    for labels in ([1, 1, 0, 1], [0, 0, 0, 1], [0, 1, 1]):
        refuses(said, dataclasses.replace, task, validation=examples(labels))


def test_extra_parts_are_checked():
    task = make().with_extra("source", part("source", 4))
    assert list(task.extra) == ["source"]
    refuses("already has a part 'source'", task.with_extra, "source", part("source", 4))
    wide = part("wide", 4, 3)
    refuses(r"'wide': label 2 is 2, not in 0\.\.1", task.with_extra, "wide", wide)
    for label in (-1, 2):  # of classes in another order, which are numbered anew
        turned = Examples("turned", ["x", "y"], np.array([0, label]))
        said = rf"'turned': label 1 is {label}, not in 0\.\.1"
        refuses(said, task.with_extra, "turned", turned, ("b", "a"))
    refuses("'bare' of task 'toy' has no labels", task.with_extra, "bare", BARE)


@pytest.mark.parametrize(
    ("names", "labels"),
    [("abc", [0, 1, 2, 1]), ("bca", [1, 2, 0, 2]), ("bac", [1, 0, 2, 0]), ("xyz", [0, 1, 2, 1])],
)
def test_classes_of_a_second_domain_go_by_their_names(names, labels):
    """WNLI numbers its classes the other way round than RTE does."""
    task = make(3)
    other = Examples("other", list("wxyz"), np.array([0, 1, 2, 1]))
    assert task.with_extra("extra", other, tuple(names)).extra["extra"].labels.tolist() == labels
    assert task.with_extra("extra", other).extra["extra"].labels.tolist() == [0, 1, 2, 1]


def test_a_batch_of_texts_without_labels_has_none():
    ids = np.arange(6, dtype=np.int32)
    encoded = Encoded(ids, ids * 0, np.array([0, 2, 4, 6]), np.zeros(0), 0, 0)
    batch = collate(encoded, np.array([0, 2]), 8, 4)
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "weight"}
    assert batch["weight"].tolist() == [1, 1, 0, 0]
