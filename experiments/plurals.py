"""Numbers in sentences: a noun with its number, and the verb that agrees with it."""


def count(number: int, one: str, more: str = "") -> str:
    """A number and its noun: `1 run`, `2 runs`.

    Args:
      more: the plural; by default, the singular and an s.
    """
    return f"{number} {agree(number, one, more or f'{one}s')}"


def agree(number: int, one: str, more: str) -> str:
    """The form of a word that agrees with a number."""
    return one if number == 1 else more
