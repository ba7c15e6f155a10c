"""Tasks of more than two parts: their digest, parts held out of train, and few-shot draws."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from lora_jax.data import Encoded, Examples, Task, collate, plain_split


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


def test_metrics_have_defaults():
    assert (make().metric, make().metrics) == ("accuracy", ("accuracy",))
    assert (make(None).metric, make(None).metrics) == ("pearson", ("pearson",))
    task = make(metrics=("matthews", "accuracy"))
    assert task.metric == "matthews"
    with pytest.raises(ValueError, match="'toy': the main metric 'f1' is not among"):
        make(metric="f1")


def test_digest_sees_all_that_changes_a_result():
    unlabelled = Examples("test", ["x"], None)
    tasks = [
        make(),
        make(extra={"other": part("other", 4)}),
        make(extra={"another": part("other", 4)}),
        make(extra={"other": part("other", 5)}),
        make(metrics=("accuracy", "f1")),
        make(metrics=("accuracy", "f1"), metric="f1"),
        make().hold_out(8),
        make().hold_out(8, seed=1),
        make().few(8),
        make().few(8, draw=1),
        copa(),
        dataclasses.replace(copa(), choices=1),
    ]
    assert len({task.digest() for task in tasks}) == len(tasks)
    assert make(unlabelled={"test": unlabelled}).digest() == make().digest()
    assert make(metrics=("accuracy",), metric="accuracy").digest() == make().digest()


@pytest.mark.parametrize("classes", [2, 3, None])
@pytest.mark.parametrize("seed", [0, 7])
def test_hold_out_takes_from_train_and_leaves_the_development_parts(classes, seed):
    unlabelled = {"test": Examples("test", ["x"], None)}
    task = make(classes, extra={"other": part("other", 6, classes)}, unlabelled=unlabelled)
    held = task.hold_out(9, seed)
    assert (len(held.train), len(held.validation)) == (31, 9)
    assert sorted(held.train.ids + held.validation.ids) == sorted(task.train.ids)
    for text, label in zip(held.validation.texts, held.validation.labels, strict=True):
        assert label == task.train.labels[task.train.texts.index(text)]
    assert (held.extra, held.unlabelled) == ({}, unlabelled)
    assert held.digest() == task.hold_out(9, seed).digest()
    assert held.digest() != task.hold_out(9, seed + 1).digest()
    if classes:
        counts = np.bincount(held.validation.labels)
        assert abs(counts - 9 * np.bincount(task.train.labels) / 40).max() < 1


@settings(max_examples=50)
@given(st.lists(st.integers(0, 12), min_size=4, max_size=40), st.integers(1, 39), st.integers(0, 9))
def test_a_plain_split_has_no_text_in_both_parts(words, size, seed):
    styles = ["w{}", "W{} !"]
    texts = [styles[i % 2].format(word) for i, word in enumerate(words)]
    examples = Examples("drawn", texts, np.arange(len(words)) / 3, ids=list(map(str, words)))
    single = sum(words.count(word) == 1 for word in words)
    if size >= len(words) or size > single:
        with pytest.raises(ValueError, match="'drawn'"):
            plain_split(examples, size, seed)
        return
    rest, held = plain_split(examples, size, seed)
    assert len(held) == size == len(set(held.ids))
    assert not set(rest.ids) & set(held.ids)
    assert sorted(rest.labels.tolist() + held.labels.tolist()) == examples.labels.tolist()


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
    for size in (0, 41):
        with pytest.raises(ValueError, match=f"cannot draw {size} of 40 examples of 'train'"):
            task.few(size)


def test_choices_stay_together():
    task = copa()
    for cut in (task.hold_out(6), task.hold_out(3, seed=2), task.few(6, draw=1)):
        parts = [cut.train] if cut.validation is task.validation else [cut.train, cut.validation]
        for each in parts:
            ids = np.array(each.ids, int).reshape(-1, 2)
            assert (ids[:, 0] % 2 == 0).all()
            assert (ids[:, 1] == ids[:, 0] + 1).all()
            assert (each.labels.reshape(-1, 2).sum(1) == 1).all()
    held = task.hold_out(6).validation
    assert len(held) == 12  # six questions
    assert held.labels.reshape(-1, 2).argmax(1).sum() == 2  # a third, as in train


@pytest.mark.parametrize("labels", [[1, 1, 0, 1], [0, 0, 0, 1], [0, 1, 1]])
def test_every_question_has_one_right_choice(labels):
    examples = Examples("bad", [f"t{i}" for i in range(len(labels))], np.array(labels))
    good = Examples("good", list("abcd"), np.array([0, 1, 1, 0]))
    with pytest.raises(
        ValueError, match="'bad': each 2 examples in a row must have exactly one right"
    ):
        Task("toy", good, examples, ("wrong", "right"), choices=2)


def test_extra_parts_are_checked():
    task = make().with_extra("source", part("source", 4))
    assert list(task.extra) == ["source"]
    with pytest.raises(ValueError, match="already has a part 'source'"):
        task.with_extra("source", part("source", 4))
    with pytest.raises(ValueError, match=r"'wide': label 2 is 2, not in 0\.\.1"):
        task.with_extra("wide", part("wide", 4, 3))
    for label in (-1, 2):  # of classes in another order, which are numbered anew
        turned = Examples("turned", ["x", "y"], np.array([0, label]))
        with pytest.raises(ValueError, match=rf"'turned': label 1 is {label}, not in 0\.\.1"):
            task.with_extra("turned", turned, ("b", "a"))
    with pytest.raises(ValueError, match="'bare' of task 'toy' has no labels"):
        task.with_extra("bare", Examples("bare", ["x"], None))
    with pytest.raises(ValueError, match="only one of train and pairs has second_texts"):
        task.with_extra("pairs", part("pairs", 2, second_texts=["x", "y"]))


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


def test_metrics_of_an_extra_part_are_of_one_that_is_there():
    task = make().with_extra("far", part("far", 4))
    own = dataclasses.replace(task, extra_metrics={"far": ("matthews",)})
    assert own.digest() != task.digest()
    assert own.hold_out(2).extra_metrics == {}
    with pytest.raises(ValueError, match="extra_metrics has 'fra', which is no extra part"):
        dataclasses.replace(task, extra_metrics={"fra": ("matthews",)})


def test_texts_without_labels():
    bare = Examples("bare", ["a", "b", "c"], None)
    assert bare.take([2, 0]).texts == ("c", "a")
    assert bare.take([2, 0]).labels is None
    assert bare.digest() != Examples("bare", ["a", "b", "c"], np.array([0, 0, 0])).digest()
    with pytest.raises(ValueError, match="data set 'bare' of task 'toy' has no labels"):
        Task("toy", bare, bare, ("a", "b"))
    ids = np.arange(6, dtype=np.int32)
    encoded = Encoded(ids, ids * 0, np.array([0, 2, 4, 6]), np.zeros(0), 0, 0)
    batch = collate(encoded, np.array([0, 2]), 8, 4)
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "weight"}
    assert batch["weight"].tolist() == [1, 1, 0, 0]
