"""What is in the documents that are written by hand: blocks of code and links.

A block that cannot run where tests run has a mark on the line above it, which the page does not
show: `<!-- not run: it needs a GPU -->`. Code that a page needs and does not show is a comment that
begins with `<!-- python`.
"""

import dataclasses
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"(?:^[ ]*<!--[ ]not[ ]run:[ ](?P<mark>[^\n]+?)[ ]-->\n\s*)?"
    r"^(?P<indent>[ ]*)```(?P<language>[\w{}-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```[ ]*$"
    r"|^<!--[ ]python\n(?P<hidden>.*?)^-->$",
    re.DOTALL | re.MULTILINE,
)
RECIPE = re.compile(
    r"^(\w+):.*\n\t.*-m (experiments\.\w+|benchmarks)(.*) \$\(ARGS\)$", re.MULTILINE
)
"""A target of the Makefile that gives ARGS to a command: its name, the module, and more flags."""
VARIABLE = re.compile(r"\$\((?:[^()]|\([^()]*\))*\)")
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


def command_lines(block: Block) -> list[tuple[str, list[str]]]:
    """The command lines of a block as words, with their places, without prompts and comments."""
    found, number = [], block.line
    for line in re.split(r"(?<!\\)\n", block.code):
        words = shlex.split(line.replace("\\\n", " ").removeprefix("$ "), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]  # the environment
        found += [(f"{block.path.relative_to(ROOT)}:{number}", words)] if words else []
        number += line.count("\n") + 1
    return found


def shell_lines() -> list[tuple[str, list[str]]]:
    """All command lines that the documents show, but for blocks with a mark."""
    shells = ("bash", "sh", "shell", "console")
    every = (block for path in documents() for block in blocks(path))
    shown = (block for block in every if block.language in shells and not block.mark)
    return [line for block in shown for line in command_lines(block)]


def project_commands() -> list[tuple[str, str, list[str]]]:
    """The command lines of this project: their places, modules and flags.

    `make TARGET ARGS="FLAGS"` is the command that the Makefile gives these flags to.
    """
    found, makefile = [], (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {name: (module, VARIABLE.sub("", f)) for name, module, f in RECIPE.findall(makefile)}
    for place, words in shell_lines():
        if re.search(r"\bpython3?$", words[0]) and words[1:2] == ["-m"]:
            found.append((place, words[2], words[3:]))
        given = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")]
        if words[0] == "make" and words[1] in targets and given:
            module, own = targets[words[1]]
            found.append((place, module, shlex.split(f"{own} {given[0]}")))
    return [line for line in found if re.match(r"experiments\.|benchmarks$", line[1])]


def links(path: Path) -> list[str]:
    """Where the links and pictures of a document lead."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return [one or two for one, two in LINK.findall(text)]
