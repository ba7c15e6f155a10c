"""Mistakes on the command line: each ends with one line, before anything is built."""

import re
import subprocess
import sys

import commands
import pytest
from commands import ROOT

from experiments import cli

SMOKE = "configs/quickstart.py:size=smoke"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((f"--config={SMOKE}",), "--workdir must have a value"),
        (("--config=configs/quikstart.py",), "nearest: 'configs/quickstart.py'"),
        (("--config=configs/quickstart.py:sizes=smoke",), "'sizes=smoke': expected one of variant"),
        ((f"--config={SMOKE}", "--config.variant.rnk=4"), 'Did you mean "rank"'),
        ((f"--config={SMOKE}", "--config.varient.rank=4"), 'Did you mean "variant"'),
        ((f"--config={SMOKE}", "--config.variant.rank=many"), "--config.variant.rank=many"),
        ((f"--config={SMOKE}", "--wrkdir=x"), "Did you mean: workdir"),
        ((f"--config={SMOKE}", "stray"), "unexpected argument 'stray'"),
        ((f"--config={SMOKE}", "--config.variant.name=lorra"), "nearest: 'lora'"),
        ((f"--config={SMOKE}", "--process=1"), "--process needs --coordinator, too"),
        ((f"--config={SMOKE}", "--distributed"), "--distributed: JAX cannot tell how these proc"),
    ],
)
def test_a_mistake_on_the_command_line(tmp_path, arguments, said):
    workdir = tmp_path / "run"
    if "--workdir" not in said:
        arguments = (*arguments, f"--workdir={workdir}")
    done = commands.run("experiments.train", *arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not workdir.exists()


def test_a_new_interpreter_says_the_same():
    """As `commands` does not start one."""
    line = [sys.executable, "-m", "experiments.train", "--config=configs/quikstart.py"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    forked = commands.run(*line[2:])
    assert (done.returncode, done.stderr) == (forked.returncode, forked.stderr)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--config", "configs/quick.py"), "no config file 'configs/quick.py'; nearest: .*quickst"),
        (
            ("-config=quickstart.py:size=smoke",),
            "no config file 'quickstart.py'; nearest: .*/quick",
        ),
        (("--config=configs/common.pyy",), "no config file .*; nearest: 'configs/.*"),
        (("--config=",), "no config file ''"),
        (("--workdir=x", "--config"), "no config file ''"),
        (
            ("--config=README.md",),
            "'README.md' is not a config, not even Python: .*README.md, line",
        ),
        (
            ("--config=configs/common.py",),
            "'configs/common.py' is not a config: it has no get_config; nearest: 'configs/.*",
        ),
    ],
)
def test_what_is_no_config_file(monkeypatch, arguments, said):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        cli.parse(["command", *arguments])
    assert re.fullmatch(f"error: {said}.*", str(caught.value.code))


def test_a_file_that_is_no_config_is_not_executed(tmp_path):
    (tmp_path / "other.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    with pytest.raises(SystemExit, match="it has no get_config"):
        cli.parse(["command", f"--config={tmp_path / 'other.py'}"])
    assert not (tmp_path / "trace").exists()
