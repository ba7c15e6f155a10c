"""A seeded, stratified split that puts no text in both parts."""

import collections
import re
import unicodedata

import numpy as np

from lora_jax.data.examples import Examples
from lora_jax.data.shuffle import permutation


def normalise(text: str) -> str:
    """The words of a text, lower-cased and joined by single spaces, for finding duplicates."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def stratified_split(examples: Examples, size: int, seed: int) -> tuple[Examples, Examples]:
    """Holds out `size` examples, classes in proportion; returns `(rest, held_out)`.

    A text (or pair) that occurs more than once after `normalise` stays in the rest, so nothing is
    in both parts and what is held out is free of duplicates. Both parts keep the order of
    `examples`, and depend on the examples and the seed alone. Raises `ValueError` for real-valued
    labels and for a size that the classes cannot fill.
    """
    labels = examples.labels
    if labels.dtype.kind != "i":
        raise ValueError(f"data set {examples.name!r}: a stratified split needs class labels")
    if not 0 < size < len(examples):
        raise ValueError(
            f"data set {examples.name!r}: cannot hold out {size} of {len(examples)} examples"
        )

    keys = [normalise(text) for text in examples.texts]
    if examples.second_texts is not None:
        keys = list(zip(keys, map(normalise, examples.second_texts), strict=True))
    occurrences = collections.Counter(keys)
    unique = np.array([occurrences[key] == 1 for key in keys])

    held_out = np.zeros(len(examples), bool)
    order = permutation(len(examples), seed)
    for label, quota in _quotas(labels, size).items():
        chosen = order[(labels == label)[order] & unique[order]][:quota]
        if len(chosen) < quota:
            raise ValueError(
                f"data set {examples.name!r}: class {label} has {len(chosen)} examples "
                f"without a duplicate, {quota} are to be held out"
            )
        held_out[chosen] = True
    return (
        examples.take(np.flatnonzero(~held_out)),
        examples.take(np.flatnonzero(held_out)),
    )


def _quotas(labels: np.ndarray, size: int) -> dict[int, int]:
    """How many of each class: in proportion, the largest remainders rounded up."""
    classes, counts = np.unique(labels, return_counts=True)
    quotas, remainders = np.divmod(counts * size, len(labels))
    missing = size - quotas.sum()
    quotas[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return dict(zip(classes.tolist(), quotas.tolist(), strict=True))
