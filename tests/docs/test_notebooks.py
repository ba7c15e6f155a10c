"""The notebooks as they are committed: their outputs, and the cell that installs the library."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in PATHS]
MOST = 500_000
"""The most bytes of a notebook: a reader waits for them, and every commit keeps them."""


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def first_text(path):
    return nbformat.read(path, as_version=4).cells[0].source.replace("\n", " ")


def texts(output):
    """All that an output says."""
    data = output.get("data", {})
    return [output.get("text", ""), *(text for kind, text in data.items() if "image" not in kind)]


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_outputs_are_those_of_one_run_and_of_no_machine(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    said = "\n".join(text for output in outputs for text in texts(output))
    assert not re.findall(r"(?<![\w.:/])/(?:tmp|home|root|work|usr|opt|var|Users)\b\S*", said)
    assert path.stat().st_size <= MOST


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_every_code_cell_is_short_and_the_notebook_begins_with_text(path):
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.cell_type for cell in cells[:2]] == ["markdown", "code"]
    assert max(len(cell.source.splitlines()) for cell in code_cells(path)) <= 25


def test_the_site_lists_every_notebook_with_the_time_that_it_states():
    page = (ROOT / "docs" / "start" / "notebooks.md").read_text(encoding="utf-8")
    row = r"^\| \[.+\]\(\.\./\.\./notebooks/(\w+)\.ipynb\) \| .+ \| (.*) \|$"
    listed = re.findall(row, page, re.MULTILINE)
    assert [name for name, _ in listed] == NAMES
    for path, (_, time) in zip(PATHS, listed, strict=True):
        stated = re.findall(r"(?:takes|runs in) ([\w ]*minutes?)", first_text(path))
        assert stated == ([time] if time else [])


ALONE = [path for path in PATHS if "wheel" in code_cells(path)[0].source]
"""The notebooks that do not need the repository."""


def installed_by(path, folder, monkeypatch):
    """The requirements of each pip command of the first cell, where the library is missing."""
    lines = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda line, check: lines.append(line))
    exec(code_cells(path)[0].source, {})
    assert all(line[:4] == [sys.executable, "-m", "pip", "install"] for line in lines)
    return [line[4:] for line in lines]


@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.stem)
def test_the_first_cell_installs_the_wheel_and_the_locked_assets(path, tmp_path, monkeypatch):
    wheel = tmp_path / "lora_jax-0.1.0-py3-none-any.whl"
    wheel.touch()
    first, *rest = installed_by(path, tmp_path, monkeypatch)
    assert any(each.startswith(str(wheel)) for each in first)
    files = (ROOT / "requirements" / f"assets{name}.txt" for name in ("", "_decoders"))
    locked = re.findall(r"^(\S+==\S+)", "\n".join(map(Path.read_text, files)), re.MULTILINE)
    for line in rest:
        assert "--no-deps" in line
        assert set(line) - {"--no-deps", "--quiet"} <= set(locked)


@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.stem)
def test_without_a_wheel_the_first_cell_says_how_to_build_one(path, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="`make wheel`"):
        installed_by(path, tmp_path, monkeypatch)
