"""Docstrings as reStructuredText.

Docstrings are plain English with `code` between single backticks. An indented paragraph is an
equation in a method's docstring, and code elsewhere.
"""

import inspect
import re
import textwrap

from docs.generate import equations

SECTION = re.compile(r"(Args|Raises|Returns|Yields|Attributes):$")
ARXIV = re.compile(r"\b(arXiv) (\d{4}\.\d{4,5})")


def escaped(text: str) -> str:
    """One paragraph, with its code as code and every other sign as it is."""
    out = ""
    for place, part in enumerate(re.split(r"`([^`]+)`", text)):
        if place % 2 == 0:
            plain = re.sub(r"([\\*|`]|_(?!\w))", r"\\\1", part)
            # Code ends at a space or a sign, in reStructuredText.
            out += "\\ " * bool(place and re.match(r"\w", part)) + plain
        else:
            out += "\\ " * bool(re.search(r"\w$", out)) + f"``{part}``"
    return out


def paragraph(block: str) -> str:
    """A paragraph, or a list whose items begin with `* `."""
    if not block.startswith("* "):
        return escaped(" ".join(block.split()))
    items = re.split(r"(?:^|\n)\* ", block)[1:]
    return "\n".join(f"* {escaped(' '.join(item.split()))}" for item in items)


def prose(docstring: str) -> str:
    """A docstring without sections; papers become links, and indented paragraphs equations."""
    blocks = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        if not block.startswith(" "):
            said = paragraph(block)
            blocks.append(ARXIV.sub(r"`\1 \2 <https://arxiv.org/abs/\2>`__", said))
        elif '"' not in block:
            blocks += [maths_block(line) for line in block.splitlines()]
        else:
            blocks.append("::\n\n" + textwrap.indent(textwrap.dedent(block), "   "))
    return "\n\n".join(blocks)


def maths_block(line: str) -> str:
    """One equation on a line of its own; as code if it has no LaTeX."""
    try:
        return f".. math:: {equations.latex(line)}"
    except ValueError:
        return f"::\n\n   {line.strip()}"


def lines_for_autodoc(lines: list[str]) -> list[str]:
    """The lines of any docstring, for autodoc; sections stay for Napoleon to read."""
    out: list[str] = []
    in_section = in_code = False
    for line in lines:
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if SECTION.match(text) and indent == 0:
            in_section, in_code = True, False
        elif text and indent == 0:
            in_section = in_code = False
        elif text and not in_section and not in_code and out and not out[-1].strip():
            out += ["::", ""]
            in_code = True
        out.append(line if in_code or (in_section and SECTION.match(text)) else _line(line))
    return out


def _line(line: str) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    bullet = re.match(r"[*-] ", line.lstrip())
    start = bullet[0] if bullet else ""
    return indent + start + escaped(line.lstrip()[len(start) :])
