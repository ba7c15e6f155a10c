"""The one reading of a number that is written as text, in a file or on a command line.

Python reads more: underscores between digits, digits of any script, names of infinity, and what no
float holds as an infinity or as zero. Whoever wrote such a text may have meant something else.
"""

import ast
import math
import re
from decimal import Decimal

# Of exponents, four digits are more than a float has, and no more than a Decimal can be written in.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)


def read(text: str) -> Decimal | None:
    """The number that a text is, exactly; None for anything but one that a float holds.

    That is digits of ASCII, a sign before them, a decimal point and an exponent, and nothing else.
    """
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        return None
    number = Decimal(text)
    return None if number and not float(text) else number


def looks_like_one(text: str) -> bool:
    """Whether a text is a number to Python, which takes more than `read` does."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def inside(text: str) -> list[str]:
    """The numbers of a Python literal, such as a tuple, as they are written; none of another text.

    Their signs are not among them.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
        ast.literal_eval(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    numbers = [node for node in found if type(node.value) in (int, float, complex)]
    return [ast.get_source_segment(text.strip(), node) or "" for node in numbers]
