"""Your own data set: TSV, CSV or JSONL files with named columns."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.data.examples import Examples
from lora_jax.data.sources import rows
from lora_jax.data.split import as_written, plain_split, stratified_split
from lora_jax.data.task import Task
from lora_jax.files import number_text
from lora_jax.messages import nearest, require_known

PARTS = ("train", "validation", "extra", "test")
FIELDS = (*PARTS, "text", "second_text", "label", "regression")
_PADDED = re.compile(r"[+-]?0\d")


def load(
    name: str,
    files: Mapping[str, Any],
    folder: str | Path | None = None,
    validation: int = 0,
) -> Task:
    """Load a classification or regression task, of texts or pairs, from files (`rows.read_rows`).

    Labels are numbers or names, as written: numbers are compared exactly, `1.0` is the class `1`,
    and `007` is another class than `7`. If any label of train has a fraction, the task is a
    regression. Otherwise the distinct labels of train are the classes, sorted as numbers or
    alphabetically. If a column mixes numbers and names, a name that must be a mistake is refused:
    if any number has a fraction, if more classes are numbers than names, or if Python reads the
    name as a number (`1_0`, `inf`, `1e400`). A label with invisible characters is refused too.

    Args:
      files: paths `train`, `validation`, `extra` (another domain that is evaluated too) and `test`
        (without labels, for predictions), relative ones from `folder`; columns `text`,
        `second_text` (for pairs) and `label`; and `regression`, true for a regression whose targets
        are all whole. Empty ones count as absent.
      validation: hold out this many examples of train instead of using a `validation` file.

    Raises:
      FileNotFoundError: a file does not exist.
      ValueError: one line that names the file and the wrong line or column.
    """
    given = {key: each for key, each in files.items() if each}
    for key in given:
        require_known(key, FIELDS, f"data.files has no '{key}'")
    for key in ("train", "text", "label"):
        if key not in given:
            value = "FILE" if key == "train" else "COLUMN"
            raise ValueError(f"give {key}={value} (data.files.{key})")
    for one, other in (("text", "label"), ("text", "second_text"), ("second_text", "label")):
        if one in given and given[one] == given.get(other):
            raise ValueError(
                f"data.files.{one} and data.files.{other} are the same column, {given[one]!r}"
            )
    paths = {
        part: Path(folder or "") / given[part]
        for part in PARTS
        if part in given and not (part == "validation" and validation)
    }
    read = {part: rows.read_rows(path) for part, path in paths.items()}
    if "validation" not in given and not validation:
        raise ValueError(
            "nothing to score on: give validation=FILE or held_out=500 (data.files.validation or "
            "data.validation)"
        )
    for part, path in paths.items():
        if not read[part]:
            raise ValueError(f"{path} has no rows")
    labels = {part: _labels(each, given["label"]) for part, each in read.items() if part != "test"}
    asked = bool(given.get("regression"))
    if not asked:
        _check_one_kind(read["train"], labels["train"])
        _check_look_alikes(read["train"], labels["train"])
    names = None if _is_regression(labels, asked) else classes(labels)
    parts = {}
    for part, each in read.items():
        numbers = None if part == "test" else _numbers(each, labels[part], names)
        parts[part] = _examples(f"{name}/{part}", each, given, numbers)
    if names is not None and len(names) < 2:
        raise ValueError(
            f"{paths['train']}: all labels in '{given['label']}' are '{labels['train'][0]}'; "
            "there is nothing to tell apart"
        )
    if "validation" not in parts:
        train = parts["train"]
        parts["train"], parts["validation"] = (
            plain_split(train, validation, 0, key=as_written)
            if names is None
            else stratified_split(train, validation, 0, key=as_written, names=names)
        )
    return Task(
        name=name,
        train=parts["train"],
        validation=parts["validation"],
        label_names=names,
        extra={"extra": parts["extra"]} if "extra" in parts else {},
        unlabelled={"test": parts["test"]} if "test" in parts else {},
        metrics=("accuracy", "f1") if names else ("pearson", "spearman", "pearson_spearman"),
        key=as_written,
    )


def classes(labels: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The class names of train: sorted as numbers if all are numbers, else alphabetically."""
    found = set(labels["train"])
    ordered = tuple(sorted(found))
    numbers = [(number, each) for each in found if (number := number_text.read(each)) is not None]
    return tuple(each for _, each in sorted(numbers)) if len(numbers) == len(found) else ordered


def _labels(read: Sequence[rows.Row], column: str) -> list[str]:
    """The labels as written, but whole numbers without a decimal point (`7.0` becomes `7`)."""
    found = []
    for row in read:
        label = row.written(column)
        if label == "" or label.lower() == "nan":
            raise ValueError(f"{row.where}: no label in '{column}'")
        number = number_text.read(label)
        # 007 and 7 may be two names; 7.0 and +7 are the same label as 7.
        if number is not None and rows.whole(number) and not _PADDED.match(label):
            label = str(int(number))
        found.append(label)
    return found


def _has_fraction(label: str) -> bool:
    number = number_text.read(label)
    return number is not None and not rows.whole(number)


def _check_one_kind(read: Sequence[rows.Row], labels: Sequence[str]):
    """Raise a ValueError for a name among numbers that must be a mistake (see `load`)."""
    numbers = {label: number_text.read(label) for label in labels}
    names = [label for label, number in numbers.items() if number is None]
    if len(names) == len(numbers):
        return
    fractions, most = any(map(_has_fraction, numbers)), 2 * len(names) < len(numbers)
    for row, label in zip(read, labels, strict=True):
        if numbers[label] is None and (fractions or most or number_text.looks_like_one(label)):
            raise ValueError(
                f"{row.where}: label '{label}' is not a number, but other labels are "
                f"{'decimals' if fractions else 'numbers'}: correct it, or give every class a name"
            )


def _check_look_alikes(read: Sequence[rows.Row], labels: Sequence[str]) -> None:
    """Raise a ValueError for a label that only Unicode's ways of writing tell from another one."""
    first: dict[str, str] = {}
    for row, label in zip(read, labels, strict=True):
        known = first.setdefault(unicodedata.normalize("NFC", label), label)
        if known != label:
            raise ValueError(
                f"{row.where}: label {label!a} looks like {known!a} before it; write "
                "both in the same way"
            )


def _is_regression(labels: Mapping[str, Sequence[str]], asked: bool) -> bool:
    if asked or None in map(number_text.read, labels["train"]):
        return asked
    return any(map(_has_fraction, labels["train"]))


def _numbers(
    read: Sequence[rows.Row], labels: Sequence[str], names: tuple[str, ...] | None
) -> np.ndarray:
    found = []
    numbers = {name: number for number, name in enumerate(names or ())}
    for row, label in zip(read, labels, strict=True):
        number = rows.target(label) if names is None else numbers.get(label)
        if number is None:
            expected = (
                " is not a number in the range of float32"
                if names is None
                else f", which train does not have; nearest: {nearest(label, names)}"
            )
            if names is not None and None not in map(number_text.read, (*names, label)):
                expected += " (data.files.regression makes numbers targets)"
            raise ValueError(f"{row.where}: label '{label}'{expected}")
        found.append(number)
    return np.array(found, np.float64 if names is None else np.int64)


def _examples(
    name: str,
    read: Sequence[rows.Row],
    given: Mapping[str, str],
    labels: np.ndarray | None,
) -> Examples:
    second = given.get("second_text")
    return Examples(
        name=name,
        texts=[row.text(given["text"]) for row in read],
        labels=labels,
        second_texts=[row.text(second) for row in read] if second else None,
        ids=[str(place) for place in range(len(read))],
    )
