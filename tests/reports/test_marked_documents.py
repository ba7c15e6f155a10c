"""Blocks between markers are found wherever they are, and a wrong name is said in one line."""

import commands
import pytest

from benchmarks import results
from experiments.runs import quickstart_table
from lora_jax.files import marked_documents


def test_blocks_are_found_in_files_and_folders(tmp_path):
    page, other = tmp_path / "docs/guides/a.md", tmp_path / "README.md"
    page.parent.mkdir(parents=True)
    page.write_text("old é", encoding="utf-8")
    other.write_text("as it is", encoding="utf-8")
    (tmp_path / "docs/old.txt").write_text("old")
    paths = [other, tmp_path / "docs", page]
    assert marked_documents.files(paths) == [other, page]
    fill = lambda text: text.replace("old", "new")  # noqa: E731
    assert marked_documents.rewrite(paths, fill) == [page]
    assert page.read_text(encoding="utf-8") == "new é"
    assert marked_documents.rewrite(paths, fill) == []
    assert (tmp_path / "docs/old.txt").read_text() == "old"


def test_nothing_is_written_if_one_document_is_wrong(tmp_path):
    def fill(text):
        if text == "bad":
            raise ValueError("markers do not pair")
        return "new"

    for name, text in (("a.md", "old"), ("b.md", "bad")):
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"b\.md: markers do not pair"):
        marked_documents.rewrite([tmp_path], fill)
    assert (tmp_path / "a.md").read_text() == "old"


def test_a_wrong_name_is_said_with_the_nearest(tmp_path):
    (tmp_path / "README.md").touch()
    with pytest.raises(ValueError, match=r"--documents=.*REDME.md is not there; .*'README.md'"):
        marked_documents.files([tmp_path / "REDME.md"])
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"--documents=.*a.txt is not a Markdown file"):
        marked_documents.files([tmp_path / "a.txt"])


def test_the_quickstart_s_table_is_written_between_its_markers():
    row = ("LoRA", "85.2%", "331,776", "103 s", "4.3 s")
    text = "A\n<!-- quickstart -->\nold\n<!-- /quickstart -->\nB\n"
    made = quickstart_table.fill(text, [row])
    assert made == (
        "A\n<!-- quickstart -->\n"
        "| model | accuracy | parameters | trained in | validated in |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| LoRA | 85.2% | 331,776 | 103 s | 4.3 s |\n"
        "<!-- /quickstart -->\nB\n"
    )
    assert quickstart_table.fill("no marker", [row]) == "no marker"


def test_the_commands_say_what_they_have_written(tmp_path):
    page = tmp_path / "page.md"
    spoken_of = "Between `<!-- bench: NAME -->` and\n`<!-- /bench -->`:\n"
    page.write_text(f"{spoken_of}<!-- bench: sweep -->\nold\n<!-- /bench -->\n")
    done = commands.run("benchmarks", f"--documents={page}")
    assert (done.returncode, done.stdout) == (0, f"{page}: tables rewritten\n"), done.stderr
    assert page.read_text().startswith(f"{spoken_of}<!-- bench: sweep -->\n| group | what |")
    assert "| 8 trials of 200 steps of 8x16 |" in page.read_text()
    assert (
        marked_documents.said(marked_documents.rewrite([page], results.fill))
        == "the tables are up to date"
    )
    done = commands.run("experiments.quickstart", "--size=smoke", f"--documents={page}")
    said = "--documents writes the table of the default --model and --size: leave both out"
    assert done.stderr == f"error: {said}\n"
