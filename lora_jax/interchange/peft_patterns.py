"""Patterns of PEFT's configs, such as `rank_pattern`: which entry is that of a module."""

import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

LONGEST, MOST_CHOICES = 300, 5
"""Of a regular expression that is matched."""
MOST = 1000
"""Of the expressions of one pattern that are no names, and of the forms of its names."""
MOST_WAYS = 2_000_000
"""Of matching all expressions of one pattern with one name: some tenths of a second."""
USUAL_LENGTH = 40
"""Of a module's name, in characters."""

_NAME = re.compile(r"(\^?)((?:[^^$*+?{}\[\]\\|()]|\\\W)+)")
"""A key that is a name: `^` at most, characters, dots, which stand for any, and escaped ones."""

_Form = tuple[bool, tuple[int, ...]]
"""Of names: whether they begin with `^`, and where they have dots."""


class Pattern:
    """The entries of one pattern: regular expressions, and the values of modules that they match.

    An expression matches the end of a module's name, after a dot or from the start; the first that
    does decides (PEFT's `get_pattern_key`). A file may have as many entries as a model has modules,
    so those that are names are looked up, and not matched one after another.

    Args:
      after_dot: as PEFT's C3A and FourierFT have it: an expression matches after a dot alone, and
        where none does, the key decides that is the whole name.

    Raises:
      ValueError: a key is no regular expression, or they may take too long to match.
    """

    def __init__(self, entries: Mapping[str, Any], after_dot: bool = False):
        self._values, self._after_dot = list(entries.values()), after_dot
        self._keys = {key: number for number, key in enumerate(entries)}
        self._names: dict[int, dict[_Form, dict[str, int]]] = {}  # by the number of characters
        self._expressions: list[tuple[int, re.Pattern[str]]] = []
        before, after = (r".*\.", "$") if after_dot else (r"(.*\.)?(", ")$")
        kinds = ways = 0
        for key, number in self._keys.items():
            if name := _NAME.fullmatch(key):
                text, dots = _read(name[2])
                forms = self._names.setdefault(len(text), {})
                form = bool(name[1]), dots
                kinds += form not in forms
                forms.setdefault(form, {}).setdefault(text, number)
            else:
                kinds += 1
                self._expressions.append((number, compile_(f"{before}{quick(key)}{after}")))
                ways += _ways(key)
            if kinds > MOST:
                raise ValueError(f"more than {MOST:,} keys are regular expressions, not names")
            if ways > MOST_WAYS:
                raise ValueError(
                    f"the keys up to {reprlib.repr(key)} may take too long to match: use fewer "
                    "repetitions and alternatives, or the names of modules"
                )

    def find(self, module: str) -> Any:
        """The value of a module; None if no key matches its name."""
        first = min(self._of_names(module), default=len(self._values))
        earlier = (n for n, each in self._expressions if n < first and each.match(module))
        first = next(earlier, first)
        if first == len(self._values) and self._after_dot:
            first = self._keys.get(module, first)
        return None if first == len(self._values) else self._values[first]

    def _of_names(self, module: str) -> Iterator[int]:
        """The numbers of the keys that are names, and match."""
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", module))]
        for start in starts[self._after_dot :]:
            end = module[start:]
            for (anchored, dots), numbers in self._names.get(len(end), {}).items():
                found = numbers.get(_with_dots(end, dots))
                if found is not None and not (anchored and start):
                    yield found


def _read(name: str) -> tuple[str, tuple[int, ...]]:
    """The text that a key without other signs matches, and where it matches any character."""
    tokens = re.findall(r"\\?.", name, re.DOTALL)
    return "".join(each[-1] for each in tokens), tuple(n for n, x in enumerate(tokens) if x == ".")


def _with_dots(text: str, places: tuple[int, ...]) -> str:
    found = [*text]
    for each in places:
        found[each] = "."
    return "".join(found)


def quick(pattern: str) -> str:
    """The pattern, unless a hostile one may take `re` for ever: it tries every combination.

    Each choice multiplies the combinations; a repeated group and inline flags hide how many.

    Raises:
      ValueError: it is such a one.
    """
    bare = re.sub(r"\\.", "", pattern, flags=re.DOTALL)
    choices = len(re.findall(r"(?<!\()[*+?{]|\(", bare))
    hidden = re.search(r"\)[*+{]|\(\?[^:=!<]", bare)
    if len(pattern) > LONGEST or choices > MOST_CHOICES or hidden:
        raise ValueError(
            f"{reprlib.repr(pattern)} may take too long to match: a pattern has at most {LONGEST} "
            f"characters and {MOST_CHOICES} groups and repetitions, and repeats no group"
        )
    return pattern


def _ways(pattern: str) -> int:
    """About how many ways `re` may try of matching a `quick` expression with a usual name."""
    bare = re.sub(r"\\.", "", pattern, flags=re.DOTALL)
    repetitions = len(re.findall(r"(?<!\()[*+{]", bare))
    optional = len(re.findall(r"(?<![(*+?}])\?", bare))
    groups = bare.count("(") + 1
    alternatives = math.ceil((1 + bare.count("|") / groups) ** groups)
    return math.comb(USUAL_LENGTH + repetitions, repetitions) * 2**optional * alternatives


def compile_(pattern: str) -> re.Pattern[str]:
    """`re.compile`; a ValueError for what is no pattern."""
    try:
        return re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise ValueError(f"{pattern!r} is no pattern: {error}") from None
