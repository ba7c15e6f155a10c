"""The project's documents, and the blocks between their markers, which commands write anew.

A block begins with a marker such as `<!-- bench: train -->` and ends with `<!-- /bench -->`. It may
lie in any Markdown file, so a page can be moved or divided without a change to the commands.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from lora_jax.messages import nearest_path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs")
HELP = (
    "Rewrite this command's tables between the markers of these Markdown files, and of those in "
    "these folders, for example README.md,docs."
)


def files(paths: Iterable[Path | str] = DOCUMENTS) -> list[Path]:
    """The Markdown files among `paths`, and those anywhere below the folders among them.

    Raises:
      ValueError: a path of --documents that is neither a folder nor a Markdown file.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found |= dict.fromkeys(sorted(path.rglob("*.md")))
        elif path.is_file() and path.suffix == ".md":
            found[path] = None
        else:
            wrong = "is not a Markdown file" if path.exists() else "is not there"
            near = nearest_path(path, lambda each: each.is_dir() or each.suffix == ".md")
            raise ValueError(f"--documents={path} {wrong}{near}")
    return list(found)


def fill_blocks(text: str, kind: str, make: Callable[[str], str]) -> str:
    """A text whose blocks of one kind, such as `bench`, are made anew.

    A marker is a line of its own; one within a sentence only speaks of markers.

    Args:
      make: returns the block of a name, which is empty for the marker `<!-- bench -->`.

    Raises:
      ValueError: a marker that begins or ends a block without its partner, or from `make`.
    """
    begin, end = rf"^<!-- {kind}(?:: ([^>]+))? -->\n", rf"^<!-- /{kind} -->$"
    of_block = re.compile(rf"({begin})(.*?){end}", re.DOTALL | re.MULTILINE)
    begins, ends = (re.findall(each, text, re.MULTILINE) for each in (begin, end))
    found = of_block.finditer(text)
    whole = [match for match in found if not re.search(begin, match[3], re.MULTILINE)]
    if not len(begins) == len(whole) == len(ends):
        marks = f"<!-- {kind} --> or <!-- {kind}: NAME --> ... <!-- /{kind} -->"
        raise ValueError(f"markers do not pair: {marks}")
    return of_block.sub(
        lambda match: f"{match[1]}{make(match[2] or '').strip()}\n<!-- /{kind} -->", text
    )


def rewrite(paths: Iterable[Path | str], fill: Callable[[str], str]) -> list[Path]:
    """Write every document whose text `fill` changes; return these documents.

    All texts are made before one is written.

    Raises:
      ValueError: as for `files`, or from `fill`, with the document's name before it.
    """
    new: dict[Path, str] = {}
    for path in files(paths):
        try:
            old = path.read_text(encoding="utf-8")
            text = fill(old)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if text != old:
            new[path] = text
    for path, text in new.items():
        path.write_text(text, encoding="utf-8")
    return list(new)


def said(changed: Iterable[Path]) -> str:
    """What a command prints after `rewrite`: a line for each document that it changed."""
    lines = [f"{path}: tables rewritten" for path in changed]
    return "\n".join(lines) or "the tables are up to date"


def update(paths: Iterable[Path | str], fill: Callable[[str], str]) -> None:
    """`rewrite`, and print which documents it changed."""
    print(said(rewrite(paths, fill)))
