"""Commands are timed to their end, or until they have written a line."""

import sys
import time

import pytest

from experiments.benchmarks.commands import seconds_of, seconds_until

WRITER = """
import os, pathlib, sys
path = pathlib.Path(sys.argv[1])
path.write_text("no line")
path.write_text(os.environ["LINE"] + "\\n")
pathlib.Path(sys.argv[1] + ".end").touch()
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Programs that run modules of their own."""

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        return [sys.executable, "-m", name]

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return write


def test_a_command_goes_on_after_its_line(module, tmp_path):
    path = tmp_path / "line"
    began = time.perf_counter()
    found = seconds_until(path, module("writer", WRITER), str(path), settings={"LINE": "x"})
    assert 0 < found < time.perf_counter() - began
    assert path.read_text(encoding="utf-8") == "x\n"
    assert path.with_suffix(".end").exists()


@pytest.mark.parametrize("text", ["", "raise SystemExit('no disk')"])
def test_a_command_without_its_line_is_an_error(module, tmp_path, text):
    with pytest.raises(ValueError, match="-m silent: no disk" if text else "-m silent: $"):
        seconds_until(tmp_path / "line", module("silent", text))


def test_a_command_that_fails_is_an_error(module):
    assert seconds_of(module("fine", "")) > 0
    with pytest.raises(ValueError, match="-m wrong --steps=2: no such step"):
        seconds_of(module("wrong", "raise SystemExit('no such step')"), "--steps=2")
