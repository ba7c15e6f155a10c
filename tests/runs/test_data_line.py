"""The line on the data that a run begins with: counts, classes, and texts that are cut."""

from types import SimpleNamespace

import numpy as np
import pytest
from small_language import write_places
from text_runs import config

from experiments.runs.announce import describe
from experiments.setup.load import read_texts
from lora_jax import data


def said(task, cut=0, max_length=32, name="own", source="files"):
    """The line on a task, of whose training texts some are cut; the model takes 64 tokens."""
    encoded = {"train": SimpleNamespace(truncated=cut), "validation": SimpleNamespace(truncated=0)}
    texts = SimpleNamespace(task=task, encoded=encoded, shape=SimpleNamespace(max_tokens=64))
    section = SimpleNamespace(max_length=max_length, name=name, source=source)
    return describe(SimpleNamespace(data=section), texts)


def part(labels):
    return data.Examples("part", [f"text {i}" for i in range(len(labels))], np.array(labels))


def test_classes_have_their_counts():
    two = data.Task("t", part([0, 1, 1]), part([0, 1]), ("neg", "pos"))
    assert said(two) == "data: 3 examples to train on (neg: 1, pos: 2), 2 to score"
    names = ("a\nb", "c" * 31, *"defgh")
    seven = data.Task("t", part(range(7)), part(range(7)), names)
    assert said(seven) == (
        f"data: 7 examples to train on ('a\\nb': 1, {'c' * 30}...: 1, d: 1, e: 1, f: 1 and 2 more "
        "classes), 7 to score"
    )


def test_other_tasks_have_no_classes():
    test = {"test": data.Examples("test", ["a", "b"], None)}
    numbers = data.Task("t", part([0.5, 1.0]), part([0.0, 1.0]), None, unlabelled=test)
    assert said(numbers) == "data: 2 examples to train on, 2 to score, 2 to predict"
    pairs = data.Task("t", part([0, 1, 1, 0]), part([0, 1]), ("0", "1"), choices=2)
    assert said(pairs) == "data: 2 questions of 2 choices to train on, 1 to score"


@pytest.mark.parametrize(
    ("cut", "max_length", "end"),
    [
        (1, 32, "1 of 5 texts is cut to config.data.max_length 32 tokens"),
        (3, 128, "3 of 5 texts are cut to the model's limit of 64 tokens"),
    ],
)
def test_texts_that_are_cut_are_counted(cut, max_length, end):
    task = data.Task("t", part([0, 1, 1]), part([0, 1]), ("neg", "pos"))
    assert said(task, cut, max_length).endswith(f", 2 to score; {end}")


def test_prompts_are_cut_with_each_of_their_options(tmp_path):
    """Every prompt is too long, and a question with four options is four texts."""
    settings = config(write_places(tmp_path), data__max_length=12)
    texts = read_texts(settings)
    options = int(texts.task.validation.option_counts.sum())
    extra = sum(int(each.option_counts.sum()) for each in texts.task.extra.values())
    total = len(texts.task.train) + options + extra
    assert describe(settings, texts).endswith(
        f"; {total} of {total} texts are cut to config.data.max_length 12 tokens, at the beginning "
        "of the prompt"
    )
