"""What a sweep varies: from `--sweep=KEY=VALUES` to the overrides of each trial, as text.

KEY is `config.` and the path of a setting (`config.optimizer.learning_rate`), or else an argument
of the config's file (`variant`). VALUES are separated by commas, of which those inside brackets or
quotes separate nothing: `config.also_train=(),("classifier/.*","pooler/.*")` are two tuples. Two or
three integers with colons are a range without its end, as in Python: `0:5` is 0 to 4, `0:10:2` the
even ones of 0 to 8; the text `"0:5"` stands in quotes. With `--trials`, `log:1e-5:1e-2` and
`uniform:0:0.3` are ranges to draw from, and values a list to choose from.
"""

import dataclasses
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lora_jax.files import number_text
from lora_jax.suggest import nearest

Overrides = dict[str, str]
"""Of one trial: the text of each key, in the order of the flags."""

_KINDS = ("log", "uniform")
_CLOSING = {")": "(", "]": "[", "}": "{"}
_INTEGERS = re.compile(r"(-?\d+):(-?\d+)(?::(-?\d+))?", re.ASCII)
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_DIGITS = 4  # significant ones of a number that is drawn: more are in nobody's interest
_ATTEMPTS = 100  # for each trial, to draw one that was not drawn before

MOST = 100_000
"""Trials of a sweep: a folder, a line in its list and a config in memory for each."""


@dataclasses.dataclass(frozen=True)
class Values:
    """A key and the texts that it takes in turn."""

    key: str
    texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Range:
    """A key whose numbers are drawn, ends included: evenly, or their logarithms evenly (`log`)."""

    key: str
    kind: str
    low: float
    high: float


Axis = Values | Range


def parse(spec: str) -> Axis:
    """What a `--sweep` flag says.

    Raises:
      ValueError: one line that names the flag and what is wrong with it.
    """
    key, equals, text = spec.partition("=")
    where = f"--sweep={spec}"
    if not (key and equals):
        raise ValueError(f"{where}: expected KEY=VALUES, such as variant=lora,dora")
    check_key(key, where)
    items = _split(text, where)
    if "" in items:
        raise ValueError(f"{where}: a value is missing")
    for item in items:
        kind, *ends = item.split(":")
        numbers = len(ends) == 2 and kind.isidentifier() and None not in map(number_text.read, ends)
        if kind in _KINDS and ends and not numbers:
            raise ValueError(f"{where}: expected {kind}:LOW:HIGH, such as {kind}:1e-5:1e-2")
        if numbers and kind not in _KINDS:
            raise ValueError(f"{where}: unknown '{kind}'; nearest: {nearest(kind, _KINDS)}")
        if numbers and len(items) > 1:
            raise ValueError(f"{where}: a range to draw from stands alone")
        if numbers:
            return _range(key, kind, float(ends[0]), float(ends[1]), where)
    runs = [_run(item, where) for item in items]
    check_count(sum(_length(run) for run in runs), where)
    return Values(key, tuple(str(value) for run in runs for value in run))


def check_count(trials: int, where: str) -> None:
    """Raise a ValueError for more trials than a sweep may have, before any of them is made."""
    if trials > MOST:
        raise ValueError(f"{where}: {trials:,} trials; a sweep has at most {MOST:,}")


def check_key(key: str, where: str) -> None:
    """Raise a ValueError where a key is neither a setting's path nor an argument's name."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{where}: '{key}' is no name of a setting or an argument")
    if "." in key and not key.startswith("config."):
        raise ValueError(f"{where}: unknown key '{key}'; nearest: 'config.{key}'")
    if key == "config":
        raise ValueError(f"{where}: name a setting, such as config.seed")


def _split(text: str, where: str) -> list[str]:
    """The parts of a text between the commas that are not inside brackets or quotes."""
    items, opened, quote = [""], [], ""
    for character in text:
        if character == "," and not (opened or quote):
            items.append("")
            continue
        items[-1] += character
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in _CLOSING.values():
            opened.append(character)
        elif character in _CLOSING and (not opened or opened.pop() != _CLOSING[character]):
            raise ValueError(f"{where}: '{character}' closes nothing")
    if quote or opened:
        raise ValueError(f"{where}: {quote or opened[-1]} is not closed")
    return [item.strip() for item in items]


def _length(run: Sequence[Any]) -> int:
    """How many values there are; `len` takes no range of more than a machine's word."""
    if isinstance(run, range):
        return max(0, -((run.start - run.stop) // run.step))
    return len(run)


def _run(item: str, where: str) -> Sequence[Any]:
    """An item's values: a range of integers that nobody has counted yet, or one text."""
    if found := _INTEGERS.fullmatch(item):
        start, stop, step = int(found[1]), int(found[2]), int(found[3] or 1)
        if not (step and range(start, stop, step)):
            raise ValueError(f"{where}: the range {item} is empty")
        return range(start, stop, step)
    numbers = item.split(":")
    if len(numbers) > 1 and None not in map(number_text.read, numbers):
        raise ValueError(
            f"{where}: {item} is no range of integers; list the values, or draw from "
            f"uniform:{numbers[0]}:{numbers[1]} with --trials"
        )
    if len(item) > 1 and item[0] == item[-1] and item[0] in "\"'" and item[0] not in item[1:-1]:
        return [item[1:-1]]
    return [item]


def _range(key: str, kind: str, low: float, high: float, where: str) -> Range:
    if not (low < high and math.isfinite(high - low)):
        raise ValueError(f"{where}: {low:g} is not below {high:g}")
    if kind == "log" and low <= 0:
        raise ValueError(f"{where}: {low:g} has no logarithm; begin above 0")
    return Range(key, kind, low, high)


def text_of(value: Any) -> str:
    """A value as a flag takes it, so that reading the flag gives the value again."""
    match value:
        case ConfigDict():
            return repr(value.to_dict())
        case bool():
            return str(value).lower()
        case str():
            return value
        case int() | float() | tuple() | dict():
            return repr(value)
    raise ValueError(f"{value!r} cannot be given on a command line")


def combine(axes: Sequence[Axis], paired: bool = False) -> list[Overrides]:
    """Every combination of the axes' values, the last axis quickest; `paired`, one by one.

    Raises:
      ValueError: a key twice, a range to draw from, lists to pair of different lengths, a value
        twice where they are not paired, or too many combinations.
    """
    _once(axes)
    lists: dict[str, tuple[str, ...]] = {}
    for axis in axes:
        if isinstance(axis, Range):
            what = f"{axis.kind}:{axis.low:g}:{axis.high:g}"
            raise ValueError(f"{axis.key}={what} is drawn from: say how often with --trials=N")
        if not paired and (twice := [t for t, n in Counter(axis.texts).items() if n > 1]):
            raise ValueError(f"--sweep={axis.key}: the value {twice[0]} is given twice")
        lists[axis.key] = axis.texts
    lengths = {key: len(texts) for key, texts in lists.items()}
    if paired and len(set(lengths.values())) > 1:
        said = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise ValueError(f"--zip pairs lists of one length: {said}")
    if not paired:
        check_count(math.prod(lengths.values()), "every combination of what --sweep says")
    rows = zip(*lists.values(), strict=True) if paired else itertools.product(*lists.values())
    return [dict(zip(lists, row, strict=True)) for row in rows]


def draw(
    axes: Sequence[Axis], trials: int, seed: int, integer: Callable[[str], bool]
) -> list[Overrides]:
    """So many different combinations, drawn; more of them begin with the same ones.

    A trial's numbers depend on `seed`, its place and the key alone.

    Args:
      integer: whether a key takes integers, so that numbers drawn for it are rounded to one.

    Raises:
      ValueError: a key twice, too many, or not so many different combinations.
    """
    _once(axes)
    if trials < 1:
        raise ValueError(f"--trials must be positive, got {trials}")
    check_count(trials, f"--trials={trials}")
    found: dict[tuple[str, ...], Overrides] = {}
    for place in range(trials * _ATTEMPTS):
        drawn = {axis.key: _drawn(axis, f"{seed}/{place}/{axis.key}", integer) for axis in axes}
        found.setdefault(tuple(drawn.values()), drawn)
        if len(found) == trials:
            return list(found.values())
    raise ValueError(f"--trials={trials}: only {len(found)} different ones were drawn")


def _drawn(axis: Axis, seed: str, integer: Callable[[str], bool]) -> str:
    source = random.Random(seed)  # of a text, the same numbers in every Python
    if isinstance(axis, Values):
        return axis.texts[int(source.random() * len(axis.texts))]
    low, high = axis.low, axis.high
    if axis.kind == "log":
        value = math.exp(source.uniform(math.log(low), math.log(high)))
    else:
        value = source.uniform(low, high)
    if integer(axis.key):
        return str(min(max(round(value), math.ceil(low)), math.floor(high)))
    return repr(min(max(float(f"{value:.{_DIGITS}g}"), low), high))


def _once(axes: Sequence[Axis]) -> None:
    keys = [axis.key for axis in axes]
    if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
        raise ValueError(f"{twice[0]} is swept twice: give all of its values in one --sweep")


def times(own: Sequence[Mapping[str, str]], flags: Sequence[Overrides]) -> Iterator[Overrides]:
    """A config's own trials, each with every one of those that flags ask for.

    Raises:
      ValueError: a key of both, or too many trials.
    """
    check_count(len(own) * len(flags), "the config's sweep() times what --sweep says")
    for first, second in itertools.product(own, flags):
        if both := first.keys() & second.keys():
            raise ValueError(f"{min(both)} is swept by the config's sweep() and by --sweep")
        yield {**first, **second}
