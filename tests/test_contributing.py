"""The variant in CONTRIBUTING.md is whole, and keeps the contract as a file of one's own."""

import re
from pathlib import Path

import pytest

import lora_jax as lj
import variants

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_example_variant(tmp_path, monkeypatch):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "columns.py").write_text(code, encoding="utf-8")
    report = lj.check(variants.make("my_package.columns"))
    assert "ok" in str(report)
