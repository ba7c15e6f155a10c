"""What documents say: the quickstart works, the example of a variant too, and results are so."""

import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import lora_jax as lj
import variants
from configs.common_tasks import TITLES
from experiments.setup import config_files
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


def test_readme_shows_what_the_study_found():
    """Tests of reports compare its table, and the block of claims, with the records."""
    claims = (ROOT / "docs/project/claims.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- study: against_lora -->\n(.*?)<!-- /study -->", claims, re.DOTALL)
    assert "\n<!-- verdicts: against_lora -->\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| \w+ \| (\S+) \| (\[.*?\]) \|", block, re.MULTILINE)
    assert rows
    drawn = (ROOT / "docs/pictures/against_lora.svg").read_text(encoding="utf-8")
    texts = re.findall("<!-- (.*?) -->", drawn)
    names, numbers = [row[0] for row in rows], [f"{mean} {ends}" for _, mean, ends in rows]
    assert [each for each in texts if each in numbers] == numbers
    assert [each for each in texts if each in names] == names


def test_best_practice_has_the_rates_that_studies_chose():
    """In the rows of one task, only the first names it."""
    text = (ROOT / "docs/project/best-practice.md").read_text(encoding="utf-8")
    table = text.partition("| task | examples | LoRA | full fine-tuning | ratio |")[2]
    rows, task, ratios = [], "", []
    for line in table.splitlines()[2:]:
        if not line.startswith("|"):
            break
        named, *cells = [each.strip() for each in line.strip("|").split("|")]
        task = named or task
        rows.append((task, *cells))
    for task, examples, lora, full, ratio in rows:
        name = next(key for key, title in TITLES.items() if title == task.partition(" (")[0])
        count = int(examples.replace(",", ""))
        own = f"few_examples/{count}/{name}_{count}"
        folder = ROOT / "experiments/results" / own
        folder = folder if folder.parent.exists() else folder.parents[2] / "against_lora" / name
        chosen = []
        for method in ("lora", "full"):
            config = config_files.read_json(str(folder / "runs" / method / "0/config.json"))
            assert config["data"]["train"] == count
            chosen.append(config["optimizer"]["learning_rate"])
        assert (float(lora), float(full)) == (pytest.approx(chosen[0]), pytest.approx(chosen[1]))
        assert int(ratio) == round(chosen[0] / chosen[1])
        ratios += [chosen[0] / chosen[1]] * ("nothing" not in task)
    assert len(rows) == 11
    (stated,) = re.findall(r"geometric mean of the ratios is (\d+)", text)
    assert int(stated) == round(statistics.geometric_mean(ratios))


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
