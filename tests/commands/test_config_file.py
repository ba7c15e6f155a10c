"""Which files are configs, and where they are looked for."""

import re

import pytest
from commands import ROOT

from experiments import cli
from experiments.setup.config_flags import read_config

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


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
            ("--config=configs/glue.py,task=cola",),
            "--config=configs/glue.py,task=cola: arguments follow a colon: configs/glue.py:task=co",
        ),
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


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["--config=nope.py"], "no config file 'nope.py'; nearest: .*"),
        (["--config=configs/glue.py:tusk=rte"], "config argument 'tusk=rte': expected .*"),
        (
            ["--config=configs/glue.py", "--config.variant=dora"],
            "flag --config.variant=dora: it is a section, not a setting; "
            "nearest: --config.variant.name",
        ),
        (
            ["--config=configs/glue.py", "--config=configs/glue.py", "--config.seed=1"],
            "two --config flags are given: leave one out",
        ),
    ],
)
def test_a_mistake_in_a_file_of_flags_is_the_one_of_the_command_line(tmp_path, lines, said):
    file = tmp_path / "flags"
    file.write_text("\n".join(lines))
    for given in (lines, [f"--flagfile={file}"]):
        with pytest.raises(ValueError, match=f"^{said}$"):
            read_config(given)


def test_a_config_of_this_project_is_found_in_any_folder(tmp_path, monkeypatch):
    """Unless there is a file of that name."""
    monkeypatch.chdir(tmp_path)
    assert read_config(["--config=configs/glue.py:task=rte"]).data.name == "glue/rte"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "glue.py").write_text(
        "from ml_collections import ConfigDict\n\n"
        "def get_config(arg=None):\n    return ConfigDict({'seed': 0})\n"
    )
    assert read_config(["--config", "configs/glue.py"]).to_dict() == {"seed": 0}
    with pytest.raises(ValueError, match=r"no config file 'configs/glu.py'; nearest: .*glue.py'"):
        read_config(["--config=configs/glu.py"])


def test_a_file_that_is_no_config_is_not_executed(tmp_path):
    (tmp_path / "other.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    with pytest.raises(SystemExit, match="it has no get_config"):
        cli.parse(["command", f"--config={tmp_path / 'other.py'}"])
    assert not (tmp_path / "trace").exists()
