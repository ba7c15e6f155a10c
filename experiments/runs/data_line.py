"""Describe the examples of a run in one line, and say how many of their texts are cut."""

import numpy as np

from configs.settings import RunConfig
from experiments.plurals import agree
from lora_jax import data
from lora_jax.data.tokenised_task import TokenisedTask

SHOWN = 5
"""The most classes whose examples are counted."""
LONGEST = 30
"""The most characters of a class's name."""


def describe(config: RunConfig, texts: TokenisedTask) -> str:
    """The line on the examples of a config.

    Args:
      texts: the result of `read_texts` for this config.
    """
    task = texts.task
    choices = task.choices if isinstance(task, data.Task) else 1
    scored = task.validation, *task.extra.values()
    train, score, predict = (
        sum(map(len, parts)) // choices
        for parts in ((task.train,), scored, task.unlabelled.values())
    )
    unit = "example" if choices == 1 else "question"
    kind = f" of {choices} choices" if choices > 1 else ""
    said = f"data: {train:,} {unit}{'s' if train > 1 else ''}{kind} to train on{_classes(task)}"
    said += f", {score:,} to score" + (f", {predict:,} to predict" if predict else "")
    return said + _cut(config, texts)


def _classes(task: data.Task | data.TextTask) -> str:
    """How many training examples each class has; empty where examples have no classes."""
    if not isinstance(task, data.Task) or not task.label_names or task.choices > 1:
        return ""
    names, labels = task.label_names, task.train.labels
    assert labels is not None
    counts = np.bincount(labels, minlength=len(names))
    said = [f"{_name(name)}: {count:,}" for name, count in zip(names, counts, strict=True)]
    more = f" and {len(said) - SHOWN} more classes" if len(said) > SHOWN else ""
    return f" ({', '.join(said[:SHOWN])}{more})"


def _name(name: str) -> str:
    short = name if len(name) <= LONGEST else f"{name[:LONGEST]}..."
    return short if short.isprintable() else repr(short)  # one line


def _cut(config: RunConfig, texts: TokenisedTask) -> str:
    """How many texts are longer than a text may be; empty if none is."""
    cut = sum(each.truncated for each in texts.encoded.values())
    if not cut:
        return ""
    task, own, most = texts.task, config.data.max_length, texts.shape.max_tokens
    parts = {"validation": task.validation, **task.extra, **task.unlabelled}
    count = len(task.train) + sum(map(_rows, parts.values()))
    limit = f"config.data.max_length {own}" if own <= most else f"the model's limit of {most}"
    where = ", at the beginning of the prompt" if isinstance(task, data.TextTask) else ""
    are = agree(cut, "is", "are")
    return f"; {cut:,} of {count:,} texts {are} cut to {limit} tokens{where}"


def _rows(part: data.Examples | data.Prompts) -> int:
    """How many texts a part has: with each of its options, a prompt is another text."""
    if isinstance(part, data.Prompts) and part.options is not None:
        return int(part.option_counts.sum())
    return len(part)
