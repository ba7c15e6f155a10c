"""Data sets: what is refused before any training, and a digest that tells contents apart."""

import hashlib

import numpy as np
import pytest

from lora_jax.data import Examples, Task


def make(labels=(0, 1, 0), name="toy/train", **kwargs):
    texts = kwargs.pop("texts", [f"text {i}" for i in range(len(labels))])
    return Examples(name, texts, np.array(labels), **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"labels": []}, "'toy/train' is empty"),
        ({"texts": ["a", "b"]}, "'toy/train' has 2 texts but 3 labels"),
        ({"second_texts": ["a"]}, "'toy/train' has 3 texts but 1 second_texts"),
        ({"ids": ["a"] * 4}, "'toy/train' has 3 texts but 4 ids"),
        ({"texts": ["a", None, "c"]}, r"'toy/train': texts\[1\] is None, not a string"),
        ({"texts": "abc"}, "'toy/train': texts is one string"),
        ({"labels": [0.0, np.nan, 1.0]}, "'toy/train': label 1 is nan"),
        ({"labels": [0.0, 1.0, np.inf]}, "'toy/train': label 2 is inf"),
        ({"labels": ["yes", "no", "no"]}, "'toy/train': labels are <U3"),
        ({"labels": [[0], [1], [0]]}, r"'toy/train': labels have shape \(3, 1\)"),
    ],
)
def test_bad_examples_are_refused_by_name(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        make(**kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "label_names", "message"),
    [
        (
            [0, 0, 0],
            ("no", "yes"),
            "'toy/bad': all 3 examples to (train on|score) have the label 'no'",
        ),
        (
            [1, 1, 1],
            ("no", "yes"),
            "'toy/bad': all 3 examples to (train on|score) have the label 'yes'",
        ),
        ([2.5, 2.5], None, "'toy/bad': all 2 examples to (train on|score) have the label 2.5"),
        ([0, 2, 1], ("no", "yes"), "'toy/bad': label 1 is 2, not in 0..1"),
        ([0, 1, -1], ("no", "yes"), "'toy/bad': label 2 is -1, not in 0..1"),
        ([0.0, 1.0], ("no", "yes"), "'toy/bad': float labels in a task with classes"),
        ([0, 1], None, "'toy/bad': integer labels in a task without label_names"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_bad_labels_are_refused_in_either_split(labels, label_names, message, split):
    good = make([0, 1] if label_names else [0.0, 1.0])
    splits = {"train": good, "validation": good, split: make(labels, name="toy/bad")}
    with pytest.raises(ValueError, match=message):
        Task("toy", label_names=label_names, **splits)


@pytest.mark.parametrize("label_names", [(), ("one",), ("same", "same")])
def test_classes_need_two_distinct_names(label_names):
    with pytest.raises(ValueError, match="'toy': label_names"):
        Task("toy", make(), make(), label_names)


def test_a_label_beyond_int64_is_no_negative_one():
    with pytest.raises(ValueError, match=f"'big': label 1 is {2**64 - 1}, too large"):
        Examples("big", ["x", "y"], np.array([0, 2**64 - 1], np.uint64))
    largest = Examples("big", ["x", "y"], np.array([0, 2**63 - 1], np.uint64)).labels
    assert largest is not None and largest.tolist() == [0, 2**63 - 1]


def test_splits_agree_on_pairs():
    with pytest.raises(ValueError, match="'toy': only one of train and validation"):
        Task("toy", make(), make(second_texts=["a", "b", "c"]), ("no", "yes"))


def test_classification_and_regression_are_accepted():
    task = Task("toy", make([0, 2, 1]), make([True, False]), ("a", "b", "c"))
    assert (task.num_outputs, task.train.labels.dtype) == (3, np.int64)
    task = Task("toy", make(np.float32([0.5, 4.0])), make([1.0, 2.0]), None)
    assert (task.num_outputs, task.train.labels.dtype) == (1, np.float64)


def test_examples_do_not_share_memory_with_the_caller():
    labels = np.array([0, 1, 0])
    examples = Examples("toy", ["a", "b", "c"], labels)
    labels[0] = 1
    assert examples.labels.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="read-only"):
        examples.labels[0] = 1


def test_take_keeps_everything_together():
    examples = make([0, 1, 2], second_texts=["x", "y", "z"], ids=["i", "j", "k"])
    taken = examples.take([2, 0])
    assert taken.texts == ("text 2", "text 0")
    assert taken.second_texts == ("z", "x")
    assert taken.ids == ("k", "i")
    assert taken.labels.tolist() == [2, 0]


def test_digest_is_the_documented_hash():
    examples = make([0, 1], texts=["é", "b"], ids=["i", "j"])
    plain = rb'[["\u00e9","b"],null,[0,1]]'
    assert examples.digest() == hashlib.sha256(plain).hexdigest()


def test_digest_sees_every_change_of_content_and_no_change_of_name():
    pair = {"second_texts": ["x", "y"]}
    variants = [
        make([0, 1], texts=["ab", "c"]),
        make([0, 1], texts=["a", "bc"]),
        make([1, 0], texts=["ab", "c"]),
        make([0.0, 1.0], texts=["ab", "c"]),
        make([0, 1], texts=["c", "ab"]),
        make([0, 1], texts=["ab", "c"], **pair),
        make([0, 1], texts=["x", "y"], second_texts=["ab", "c"]),
    ]
    digests = [examples.digest() for examples in variants]
    assert len(set(digests)) == len(variants)
    assert make([0, 1], texts=["ab", "c"], name="other", ids=["1", "2"]).digest() == digests[0]

    names = ("no", "yes")
    tasks = [
        Task("toy", variants[0], variants[1], names),
        Task("toy", variants[1], variants[0], names),
        Task("toy", variants[0], variants[1], ("yes", "no")),
    ]
    assert len({task.digest() for task in tasks}) == 3
    assert Task("other", variants[0], variants[1], names).digest() == tasks[0].digest()
