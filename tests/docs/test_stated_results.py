"""What README and CONTRIBUTING say works: the quickstart, and the example of a variant."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lora_jax as lj
import variants
from lora_jax.records import run_record

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.minutes
def test_the_quickstart_is_as_good_as_it_says(tmp_path):
    # It computes for longer than it compiles: in full optimisation, as `make quickstart` does. The
    # audit, which has tests of its own, would add a tenth.
    line = [sys.executable, "-m", "experiments.quickstart", f"--workdir={tmp_path}", "--noaudit"]
    environment = {**os.environ, "XLA_FLAGS": "", "COLUMNS": "120"}
    ended = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    head, lora = (run_record.read(tmp_path / name) for name in ("head_only", "lora"))
    assert head is not None
    assert lora is not None
    assert head.metrics_last["accuracy"] >= 0.74
    assert lora.metrics_last["accuracy"] >= 0.82
    assert "LoRA, merged" in ended.stdout
    assert ended.stdout.count("before (trained head only): ") == 3


def test_readme_shows_what_the_study_s_block_says():
    """Tests of reports compare that block with the records."""
    claims = (ROOT / "docs/project/claims.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- study: against_lora -->\n(.*?)<!-- /study -->", claims, re.DOTALL)
    verdict, *_ = block.splitlines()
    assert verdict in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    rows = re.findall(r"^\| ([^|]+) \| \w+ \| (\S+) \| (\[.*?\]) \|", block, re.MULTILINE)
    assert rows
    drawn = (ROOT / "docs/pictures/against_lora.svg").read_text(encoding="utf-8")
    texts = re.findall("<!-- (.*?) -->", drawn)
    names, numbers = [row[0] for row in rows], [f"{mean} {ends}" for _, mean, ends in rows]
    assert [each for each in texts if each in numbers] == numbers
    assert [each for each in texts if each in names] == names


@pytest.mark.slow
def test_the_example_variant(tmp_path, monkeypatch):
    """It is whole, and keeps the contract as a file of one's own."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "columns.py").write_text(code, encoding="utf-8")
    report = lj.check(variants.make("my_package.columns"))
    assert "ok" in str(report)
