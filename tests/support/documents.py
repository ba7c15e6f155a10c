"""What is in the documents that are written by hand: blocks of code and links.

A block that cannot run where tests run has a mark on the line above it, which the page does not
show: `<!-- not run: it needs a GPU -->`. Code that a page needs and does not show is a comment that
begins with `<!-- python`.
"""

import dataclasses
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"(?:^[ ]*<!--[ ]not[ ]run:[ ](?P<mark>[^\n]+?)[ ]-->\n\s*)?"
    r"^(?P<indent>[ ]*)```(?P<language>[\w{}-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```[ ]*$"
    r"|^<!--[ ]python\n(?P<hidden>.*?)^-->$",
    re.DOTALL | re.MULTILINE,
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    path: Path
    line: int
    """The number of its first line of code."""
    language: str
    code: str
    mark: str
    """Why it is not run; empty if it is."""

    @property
    def place(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def documents() -> list[Path]:
    """README, and all pages of `docs/` that are not made from the code."""
    made = ROOT / "docs" / "generated"
    pages = (path for path in (ROOT / "docs").rglob("*.md") if made not in path.parents)
    return [ROOT / "README.md", *sorted(pages)]


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a document, and its hidden code, in order."""
    text, found = path.read_text(encoding="utf-8"), []
    for each in FENCE.finditer(text):
        hidden = each["hidden"] is not None
        group = "hidden" if hidden else "code"
        line = text.count("\n", 0, each.start(group)) + 1
        code = each[group] if hidden else re.sub(f"(?m)^{each['indent']}", "", each["code"])
        language = "python" if hidden else each["language"]
        found.append(Block(path, line, language, code, each["mark"] or ""))
    return found


def links(path: Path) -> list[str]:
    """Where the links and pictures of a document lead."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return [one or two for one, two in LINK.findall(text)]
