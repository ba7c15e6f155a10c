"""Numbers in sentences: a noun with its number, and the verb that agrees with it."""

from collections.abc import Collection, Sequence


def count(number: int, one: str, more: str = "") -> str:
    """A number and its noun: `1 run`, `2 runs`.

    Args:
      more: the plural; by default, the singular and an s.
    """
    return f"{number} {agree(number, one, more or f'{one}s')}"


def joined(names: Sequence[str]) -> str:
    """Names in a sentence: `a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def span(numbers: Collection[int], one: str) -> str:
    """The smallest and the largest number of a noun: `3 seeds`, `3 to 5 seeds`."""
    fewest, most = min(numbers), max(numbers)
    return count(most, one) if fewest == most else f"{fewest} to {most} {one}s"


def agree(number: int, one: str, more: str) -> str:
    """The form of a word that agrees with a number."""
    return one if number == 1 else more
