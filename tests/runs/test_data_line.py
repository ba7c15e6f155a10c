"""The line on the data that a run begins with: counts, classes, and texts that are cut."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_language import write_places
from text_runs import config

import lora_jax as lj
import variants
from configs import settings
from experiments.runs.announce import describe, passed_over
from experiments.setup.load import read_texts
from lora_jax import data


def said(task, cut=0, max_length=32, name="own", source="files"):
    """The line on a task, of whose training texts some are cut; the model takes 64 tokens."""
    encoded = {"train": SimpleNamespace(truncated=cut), "validation": SimpleNamespace(truncated=0)}
    texts = SimpleNamespace(task=task, encoded=encoded, shape=SimpleNamespace(max_tokens=64))
    section = settings.TextSettings(name=name, source=source, max_length=max_length)
    return describe(section, texts)


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
    assert describe(settings.data, texts).endswith(
        f"; {total} of {total} texts are cut to config.data.max_length 12 tokens, at the beginning "
        "of the prompt"
    )


def test_weights_that_a_group_leaves_out_are_named():
    """Those that a user may want, and not norms and positions."""

    def forward(params, x):
        x = jax.lax.conv_general_dilated(
            x, params["kernel"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        x = jnp.tanh((x + params["positions"][None]) @ params["up"])
        return x @ (params["down"] * params["scale"][None])

    params = {"kernel": jnp.ones((3, 2, 4)), "scale": jnp.ones(4), "positions": jnp.ones((5, 4))}
    params |= {"up": jnp.ones((4, 4)), "down": jnp.ones((4, 4))}
    said = []
    for targets in ("all-linear", "all-linear+conv"):
        adapted = lj.adapt(forward, variants.make("lora", rank=1), targets)
        frozen = adapted.init(jax.random.key(0), params, jnp.ones((1, 5, 2)))[1]
        said.append(passed_over(frozen))
    scaled = "arrays used only by mul (1)"
    assert said[0] == f"config.targets leaves out: {scaled}, convolutions (1)"
    assert said[1] == f"config.targets leaves out: {scaled}"
