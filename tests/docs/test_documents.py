"""What the documents show works: Python runs, command lines are read, links lead somewhere."""

import json
import re
from itertools import groupby

import commands
import documents
import pytest
from documents import ROOT, Block

PAGES = {path: documents.blocks(path) for path in documents.documents()}
BLOCKS = [block for blocks in PAGES.values() for block in blocks]
RUN = [block for block in BLOCKS if not block.mark]
MOST_MARKS = 8


def _folder(block: Block) -> str:
    return block.path.parent.relative_to(ROOT).as_posix()


PYTHON = {
    folder: list(found)
    for folder, found in groupby((b for b in RUN if b.language == "python"), key=_folder)
}


@pytest.mark.parametrize("folder", PYTHON)
def test_python_blocks_run(folder, tmp_path):
    """Those of a page in order, in one namespace; those of a folder in one process."""
    listed = [(str(block.path), block.line, block.code) for block in PYTHON[folder]]
    (tmp_path / "blocks.json").write_text(json.dumps(listed))
    started = commands.Started("tests/support/run_blocks.py", tmp_path / "blocks.json")
    ended = started.end(timeout=900)
    assert ended.returncode == 0, ended.stderr


def test_commands_have_such_flags_and_configs(tmp_path):
    """Every `python -m experiments.X` and `make X ARGS=FLAGS` is read; nothing is trained."""
    lines = documents.project_commands()
    bench = ["--suite=train", "--out=runs/bench"]
    assert ("docs/reference/benchmarks.md:7", "benchmarks", bench) in lines
    (tmp_path / "lines.json").write_text(json.dumps(lines))
    ended = commands.run("tests/support/parse_lines.py", tmp_path / "lines.json")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_make_has_such_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    shown = {
        (place, word)
        for place, words in documents.shell_lines()
        if words[0] == "make"
        for word in words[1:]
        if "=" not in word and not word.startswith("-")
    }
    assert {(place, word) for place, word in shown if word not in targets} == set()


def test_few_blocks_are_not_run():
    """Each of them says why."""
    marked = [block for block in BLOCKS if block.mark]
    assert len(marked) <= MOST_MARKS, [block.place for block in marked]
    assert [block.place for block in RUN if hides_a_command(block)] == []


def hides_a_command(block: Block) -> bool:
    """Whether a block of commands has no language, so that no test reads them."""
    return block.language in ("", "text") and "python -m experiments" in block.code


def test_a_command_without_a_language_is_seen(tmp_path):
    path = tmp_path / "page.md"
    line = "python -m experiments.train"
    path.write_text(f"```\n{line}\n```\n\n```text\n{line}\n```\n\n```bash\n{line}\n```\n")
    assert [hides_a_command(each) for each in documents.blocks(path)] == [True, True, False]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name):
    """Those of the site's pages are checked as it is built."""
    there = [link for link in documents.links(ROOT / name) if not re.match(r"\w+:|#", link)]
    assert [link for link in there if not (ROOT / link.partition("#")[0]).exists()] == []


def test_what_contributing_says_to_open_has_what_it_names():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.search(r"\| to change \| open \|\n\|---\|---\|\n((?:\|.*\n)+)", text)[1].splitlines()
    assert len(rows) >= 10
    for row in rows:
        files = [(ROOT / path).read_text() for path in re.findall(r"`([\w/]+\.py)`", row)]
        known = re.findall(r"\w+", " ".join(files))
        assert known and {*re.findall(r"`(\w+)`", row)} <= {*known}, row


def test_what_a_document_is_read_as(tmp_path):
    """The tests above see each kind of block: they would pass if they saw none."""
    path = tmp_path / "page.md"
    path.write_text(
        "# Page\n\n```python\none = 1\n```\n\n<!-- not run: it needs a GPU -->\n```bash\nrun\n```\n"
        "\n<!-- python\nhidden = 2\n-->\n\n* item\n\n  ```python\n  if one:\n      two = 2\n  ```\n"
    )
    found = [(each.line, each.language, each.code, each.mark) for each in documents.blocks(path)]
    assert found == [
        (4, "python", "one = 1\n", ""),
        (9, "bash", "run\n", "it needs a GPU"),
        (13, "python", "hidden = 2\n", ""),
        (19, "python", "if one:\n    two = 2\n", ""),
    ]
