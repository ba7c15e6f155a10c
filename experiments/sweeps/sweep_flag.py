"""Read `--sweep=KEY=VALUES` flags, and make the overrides of each trial, as text.

KEY is `config.` and the path of a setting (`config.optimizer.learning_rate`), or an argument of the
config file (`variant`). VALUES are separated by commas. Commas inside brackets or quotes do not
separate: `config.also_train=(),("classifier/.*","pooler/.*")` are two tuples.

Two or three integers with colons are a range without its end, as in Python: `0:5` is 0 to 4, and
`0:10:2` the even numbers from 0 to 8. Write `"0:5"` for the text itself. With `--trials` or
`--search`, `log:1e-5:1e-2` and `uniform:0:0.3` are ranges to draw from, and other values a list to
choose from.
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
from lora_jax.messages import nearest

Overrides = dict[str, str]
"""The text of each key for one trial, in the order of the flags."""

_KINDS = ("log", "uniform")
_CLOSING = {")": "(", "]": "[", "}": "{"}
_INTEGERS = re.compile(r"(-?\d+):(-?\d+)(?::(-?\d+))?", re.ASCII)
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_DIGITS = 4  # significant digits of a drawn number; more are not useful
_ATTEMPTS = 100  # draws for each known combination, to find another one

MOST = 100_000
"""The most trials of a sweep, as each takes a folder, a list entry and a config in memory."""


@dataclasses.dataclass(frozen=True)
class Values:
    """A key and the list of its values, as texts."""

    key: str
    texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Range:
    """A key and a range, ends included, to draw from uniformly, or in the logarithm for `log`."""

    key: str
    kind: str
    low: float
    high: float

    @property
    def integers(self) -> tuple[int, int]:
        """The first and the last integer of the range.

        Raises:
          ValueError: there is none.
        """
        first, last = math.ceil(self.low), math.floor(self.high)
        if first > last:
            ends = f"{self.low:g}:{self.high:g}"
            raise ValueError(f"--sweep={self.key}={self.kind}:{ends} has no integer")
        return first, last


Axis = Values | Range


def parse(spec: str) -> Axis:
    """Parse the value of a `--sweep` flag.

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
            raise ValueError(f"{where}: a range such as {item} cannot be listed with other values")
        if numbers:
            return _range(key, kind, float(ends[0]), float(ends[1]), where)
    runs = [_run(item, where) for item in items]
    check_count(sum(map(len, runs)), where)
    return Values(key, tuple(str(value) for run in runs for value in run))


def check_count(trials: int, where: str) -> None:
    """Raise a ValueError if there would be more trials than a sweep may have."""
    if trials > MOST:
        raise ValueError(f"{where}: {trials:,} trials; a sweep has at most {MOST:,}")


def check_key(key: str, where: str) -> None:
    """Raise a ValueError if a key is neither the path of a setting nor the name of an argument."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{where}: '{key}' is not a name of a setting or an argument")
    if "." in key and not key.startswith("config."):
        raise ValueError(f"{where}: unknown key '{key}'; nearest: 'config.{key}'")
    if key == "config":
        raise ValueError(f"{where}: name a setting, such as config.seed")


def _split(text: str, where: str) -> list[str]:
    """Split a text at commas outside brackets and quotes."""
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


def _run(item: str, where: str) -> Sequence[Any]:
    """The values of an item: a range of integers of any length, or one text."""
    if found := _INTEGERS.fullmatch(item):
        start, stop, step = int(found[1]), int(found[2]), int(found[3] or 1)
        if not (step and range(start, stop, step)):
            raise ValueError(f"{where}: the range {item} is empty")
        check_count(abs(stop - start) // abs(step), where)  # `len` takes no number of any length
        return range(start, stop, step)
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
    """A value as the text of a flag; reading the flag gives the same value."""
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
    """Every combination of the axes' values, where the last axis changes fastest.

    With `paired`, the first values of all axes make a combination, then the second ones, and so on.

    Raises:
      ValueError: a key occurs twice, an axis is a range to draw from, paired lists have different
        lengths, a value occurs twice in a list that is not paired, or there are too many
        combinations.
    """
    _once(axes)
    if not axes:
        return [{}]  # paired, no lists would make no trial
    lists: dict[str, tuple[str, ...]] = {}
    for axis in axes:
        if isinstance(axis, Range):
            what = f"{axis.kind}:{axis.low:g}:{axis.high:g}"
            raise ValueError(
                f"{axis.key}={what} is a range; add --trials=N to say how many values to draw"
            )
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
    """The first `trials` combinations of `draws`.

    Raises:
      ValueError: a key occurs twice, or there are not enough different combinations.
    """
    found = list(itertools.islice(draws(axes, seed, integer), trials))
    if len(found) < trials:
        raise ValueError(f"--trials={trials}: only {len(found)} different ones were drawn")
    return found


def draws(axes: Sequence[Axis], seed: int, integer: Callable[[str], bool]) -> Iterator[Overrides]:
    """Different combinations, one after another, until no other one is drawn.

    The values of a draw depend only on `seed`, its place and the key.

    Args:
      integer: whether a key takes integers; numbers drawn for it are rounded.

    Raises:
      ValueError: a key occurs twice.
    """
    _once(axes)
    found, newest = set[tuple[str, ...]](), 0
    for place in itertools.count():
        drawn = {axis.key: _drawn(axis, f"{seed}/{place}/{axis.key}", integer) for axis in axes}
        if tuple(drawn.values()) not in found:
            found.add(tuple(drawn.values()))
            newest = place
            yield drawn
        elif place - newest > _ATTEMPTS * len(found):
            return


def _drawn(axis: Axis, seed: str, integer: Callable[[str], bool]) -> str:
    source = random.Random(seed)  # a text seed gives the same numbers in every Python
    if isinstance(axis, Values):
        return axis.texts[int(source.random() * len(axis.texts))]
    whole = integer(axis.key)
    low, high = axis.low, axis.high
    if whole:  # so that the first and the last one are as likely as others
        low, high = axis.integers[0] - 0.5, axis.integers[1] + 0.5
    if axis.kind == "log":
        value = math.exp(source.uniform(math.log(low), math.log(high)))
    else:
        value = source.uniform(low, high)
    return written(axis, value, whole)


def written(axis: Range, value: float, integer: bool) -> str:
    """A number drawn from a range as text, with few digits, and as an integer where it is one."""
    if integer:
        first, last = axis.integers
        return str(min(max(round(value), first), last))
    return repr(min(max(float(f"{value:.{_DIGITS}g}"), axis.low), axis.high))


def _once(axes: Sequence[Axis]) -> None:
    keys = [axis.key for axis in axes]
    if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
        raise ValueError(f"{twice[0]} is swept twice: give all of its values in one --sweep")


def times(own: Sequence[Mapping[str, str]], flags: Sequence[Overrides]) -> Iterator[Overrides]:
    """Every combination of a trial of the config's `sweep()` and one from the flags.

    Raises:
      ValueError: a key is in both, or there are too many trials.
    """
    check_count(len(own) * len(flags), "the config's sweep() times what --sweep says")
    for first, second in itertools.product(own, flags):
        if both := first.keys() & second.keys():
            raise ValueError(f"{min(both)} is swept by the config's sweep() and by --sweep")
        yield {**first, **second}
