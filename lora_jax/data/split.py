"""Seeded splits that put no text in both parts: stratified by class, or plain."""

import collections
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from lora_jax.data.examples import Examples


def normalise(text: str) -> str:
    """The words of a text, lower-cased and joined by single spaces, for finding duplicates."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


class TooFewError(ValueError):
    """A part, or one of its classes, has fewer examples than are to be drawn."""


def as_written(text: str) -> str:
    """A text without regard to case, width and spacing, for finding duplicates in your own files.

    Unlike `normalise`, it keeps symbols and combining marks, so `3 + 4` and `3 - 4` differ.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def stratified_split(
    examples: Examples,
    size: int,
    seed: int,
    choices: int = 1,
    key: Callable[[str], str] = normalise,
    names: Sequence[str] | None = None,
) -> tuple[Examples, Examples]:
    """Hold out `size` examples, classes in proportion; returns `(rest, held_out)`.

    Two texts are the same if `key` returns the same for both. A text (or pair) that occurs more
    than once stays in the rest, so no text is in both parts and the held-out part has no
    duplicates. Both parts keep the order of `examples`, and depend only on the examples and the
    seed. With `choices` above 1, this many consecutive examples are one question: `size` counts
    questions, and a question's class is the index of its right choice. `names` are those of the
    classes, for messages. Raises `ValueError` for labels that are not classes, and `TooFewError`
    for a size that the classes cannot fill.
    """
    labels = examples.labels
    if labels is None or labels.dtype.kind != "i":
        raise ValueError(f"data set {examples.name!r}: a stratified split needs class labels")
    if choices > 1:
        labels, names = labels.reshape(-1, choices).argmax(1), None
    return _split(examples, labels, size, seed, choices, key, names)


def plain_split(
    examples: Examples, size: int, seed: int, key: Callable[[str], str] = normalise
) -> tuple[Examples, Examples]:
    """Hold out `size` examples regardless of labels; otherwise as `stratified_split`."""
    return _split(examples, np.zeros(len(examples), np.int64), size, seed, 1, key)


def _split(
    examples: Examples,
    strata: np.ndarray,
    size: int,
    seed: int,
    choices: int,
    key: Callable[[str], str],
    names: Sequence[str] | None = None,
) -> tuple[Examples, Examples]:
    if not 0 < size < len(strata):
        raise TooFewError(
            f"data set {examples.name!r}: cannot hold out {size} of {len(strata)} examples"
        )
    keys = _keys(examples, choices, key)
    occurrences = collections.Counter(keys)
    unique = np.array([occurrences[each] == 1 for each in keys])

    held_out = np.zeros(len(strata), bool)
    order = permutation(len(strata), seed)
    for stratum, quota in quotas(strata, size).items():
        chosen = order[(strata == stratum)[order] & unique[order]][:quota]
        if len(chosen) < quota:
            name = repr(names[stratum]) if names else stratum
            raise TooFewError(
                f"data set {examples.name!r}: class {name} has {len(chosen)} examples "
                f"without a duplicate, but {quota} are to be drawn"
            )
        held_out[chosen] = True
    held_out = np.repeat(held_out, choices)
    return (
        examples.take(np.flatnonzero(~held_out)),
        examples.take(np.flatnonzero(held_out)),
    )


def _keys(examples: Examples, choices: int, key: Callable[[str], str]) -> list[tuple[str, ...]]:
    """The keys of all texts of each question. Equal keys mean duplicates."""
    columns = [[key(text) for text in examples.texts]]
    if examples.second_texts is not None:
        columns.append([key(text) for text in examples.second_texts])
    rows = list(zip(*columns, strict=True))
    return [sum(rows[i : i + choices], ()) for i in range(0, len(rows), choices)]


def quotas(labels: np.ndarray, size: int) -> dict[int, int]:
    """How many examples to take of each class: in proportion; largest remainders are rounded up."""
    classes, counts = np.unique(labels, return_counts=True)
    quotas, remainders = np.divmod(counts * size, len(labels))
    missing = size - quotas.sum()
    quotas[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return dict(zip(classes.tolist(), quotas.tolist(), strict=True))


def permutation(count: int, *entropy: int) -> np.ndarray:
    """A permutation of `range(count)`, int64, that depends on `entropy` alone (integers >= 0).

    It sorts a bit generator's raw output. NumPy promises that these streams never change, but does
    not promise it for `Generator.permutation` (NEP 19). A plan must stay the same across NumPy
    releases.
    """
    # SeedSequence pads with zeros: without the length, (1,) and (1, 0) would be the same seed.
    bits = np.random.PCG64(np.random.SeedSequence([len(entropy), *entropy]))
    return np.argsort(bits.random_raw(count), kind="stable").astype(np.int64)
