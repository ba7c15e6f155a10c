"""Read a number that is written as text, in a file or on a command line, in one strict way.

Python accepts more: underscores between digits, digits of any script, names of infinity; and it
reads a number out of a float's range as infinity or zero. The writer may have meant something else.
"""

import ast
import math
import re
from decimal import Decimal

# An exponent of four digits exceeds a float's range, and is within a Decimal's.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)


def read(text: str) -> Decimal | None:
    """The exact number that a text states; None if it is not a number or out of a float's range.

    A number has ASCII digits and may have a sign before them, a decimal point and an exponent.
    """
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        return None
    number = Decimal(text)
    return None if number and not float(text) else number


def looks_like_one(text: str) -> bool:
    """Whether Python's `float` reads a text, which accepts more than `read` does."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def inside(text: str) -> list[str]:
    """The numbers in a Python literal, such as a tuple, as they are written, without their signs.

    The list is empty for any other text.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
        ast.literal_eval(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    numbers = [node for node in found if type(node.value) in (int, float, complex)]
    return [ast.get_source_segment(text.strip(), node) or "" for node in numbers]
