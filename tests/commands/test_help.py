"""Commands explain themselves: the list of all, their help, and how each is started."""

import ast
import importlib
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version

import commands
import pytest
from absl import flags
from commands import ROOT
from ml_collections import config_flags

from experiments import cli, command_names
from experiments.setup.config_flags import read_config

FILES = [
    path
    for path in sorted((ROOT / "experiments").glob("*.py"))
    if "cli.main(" in path.read_text(encoding="utf-8")
]


PACKAGE = "lora_jax_experiments"


@pytest.fixture
def package(monkeypatch):
    """The package, of which other tests must not find that this process was started by it."""
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    yield importlib.import_module(PACKAGE)
    del sys.modules[PACKAGE]


def flags_in(path):
    """The names that a file gives to flags, as its code has them."""
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "").startswith("DEFINE_")
    ]
    return [ast.literal_eval(call.args[0]) for call in calls]


def interpreter(*arguments, cwd):
    """A new interpreter, without settings of malloc, that finds this project's packages."""
    drop = {*command_names.MALLOC, *command_names.OTHERS}
    plain = {name: os.environ[name] for name in os.environ.keys() - drop}
    line = [sys.executable, *arguments]
    environment = {**plain, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_list_has_every_command_with_what_it_does():
    done = interpreter("-m", "experiments", cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    for path in FILES:
        first = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]
        assert re.search(rf"^    {path.stem} +{re.escape(first)}$", done.stdout, re.MULTILINE)
        assert first.endswith(".")
    assert list(command_names.commands()) == [path.stem for path in FILES]


@pytest.mark.parametrize(
    "arguments", [(), ("--version",), ("train", "--help"), ("power", "--sd=1")]
)
def test_who_stops_reading_the_output_gets_no_traceback(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "experiments", *arguments]
    done = subprocess.run(line, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_help_has_an_example_and_every_flag_with_its_default():
    running = {path: commands.Started(f"experiments.{path.stem}", "--help") for path in FILES}
    for path, each in running.items():
        done = each.end()
        assert (done.returncode, done.stderr) == (0, ""), path
        assert f"python -m experiments.{path.stem}" in done.stdout
        _, _, listed = done.stdout.partition("\nFlags:\n")
        for name in flags_in(path):
            said = re.search(rf"^    --(?:\[no\])?{name}(?:=\S+)?\n((?: {{8}}.+\n)+)", listed, re.M)
            assert said, f"{path}: --{name}"
            words = " ".join(said[1].split())
            assert re.search("required|default", words), f"{path}: --{name}: {words}"
            for sentence in re.split(r"(?<=\.) (?=[A-Z])", words):
                assert re.fullmatch(r"[A-Z0-9-](\S* ){2,}.*\.", sentence), f"{path}: --{name}"
                assert not sentence.startswith("Of "), f"{path}: --{name}: {sentence}"


def test_flags_of_the_launchers_are_named_in_one_line():
    done = commands.run("experiments.sweep", "--help")
    (line,) = re.findall(r"^    (--.*--slurm.*)$", done.stdout, re.MULTILINE)
    names = ["ray", "ray_address", "ray_retries", "slurm", "slurm_cluster", "slurm_wait"]
    assert sorted(line.split(", ")) == [f"--{name}" for name in names]


@pytest.mark.parametrize("between", ["=", " "])
def test_help_beside_a_config_lists_its_settings(between):
    config = f"--config{between}configs/quickstart.py:size=smoke".split(" ")
    given = [*config, "--config.seed=3", "--config.model.dropout"]
    done = commands.run("experiments.train", *given, "--help")
    assert "Settings of configs/quickstart.py:size=smoke:" in done.stdout, done.stderr
    for line in ("config.seed=3", "config.data.train=256", "config.variant.rank=None"):
        assert f"    --{line}\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "starts"),
    [
        (["train", "--config=x"], True),
        (["train"], True),
        (["train", "--config=x", "--help"], False),
        (["train", "-h"], False),
    ],
)
def test_only_what_computes_starts_again(monkeypatch, arguments, starts):
    """`-m` is all that Python tells of a command while it looks for it."""
    line = [f"experiments.{arguments[0]}", *arguments[1:]]
    monkeypatch.setattr(sys, "argv", ["-m", *arguments[1:]])
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", *line])
    monkeypatch.setattr(command_names, "missing", lambda _: {"NAME": "value"})
    started = []
    monkeypatch.setattr(os, "execve", lambda *given: started.append(given))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    command_names.prepare()
    given = (sys.executable, [sys.executable, "-m", *line], {**os.environ, "NAME": "value"})
    assert started == ([given] if starts else [])


def test_ctrl_c_during_imports_is_a_word_and_a_fault_is_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(command_names, "missing", lambda _: {})
    command_names.start_again()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "interrupted\n"
    sys.excepthook(ValueError, ValueError("no"), None)
    assert capsys.readouterr().err.endswith("ValueError: no\n")


def test_a_missing_file_of_flags_is_one_line(monkeypatch, capsys, tmp_path):
    """A command with a config meets it while it imports."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(command_names, "missing", lambda _: {})
    command_names.start_again()
    argument = f"--flagfile={tmp_path / 'none'}"
    with pytest.raises(flags.CantOpenFlagFileError) as found:
        config_flags.DEFINE_config_file(
            "config", flag_values=flags.FlagValues(), sys_argv=["", argument]
        )
    sys.excepthook(found.type, found.value, None)
    said = f"{argument}: No such file or directory"
    assert capsys.readouterr().err == f"error: {said}\n"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        read_config(["--config=configs/glue.py", argument])


def test_the_version():
    done = interpreter("-m", "experiments", "--version", cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{version('lora-jax')}\n", "")


def test_a_command_that_there_is_not():
    for name, said in (("bench", "make bench$"), ("memory", "plan does this: give it --publis")):
        with pytest.raises(ValueError, match=f"no command '{name}'; .*{said}"):
            command_names.require_command(name)
    gone = interpreter("-m", "experiments.memory", "--tokens=8", cwd=ROOT)
    assert gone.returncode == 1 and gone.stderr.startswith("error: no command 'memory'; plan does")
    with pytest.raises(ValueError, match=r"no command 'trian'; nearest: 'train'.* lists all"):
        command_names.require_command("trian")
    with pytest.raises(ValueError, match=r"^no flag --hlep; nearest: --help, "):
        command_names.require_command("--hlep")
    command_names.require_command("train")


def test_the_package_of_the_wheel_does_not_meet_a_users_own(tmp_path):
    """Its own folders come first, also where a user's have the same names."""
    for name in ("experiments", "configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('a user has these')")
    done = interpreter("-m", PACKAGE, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: lora-jax COMMAND --FLAG=VALUE ...\n")


def test_matplotlib_waits_for_a_picture(tmp_path):
    path = tmp_path / "look.py"
    path.write_text(
        "import sys, experiments.train, experiments.report\n"
        "print([name for name in ('experiments.report', 'matplotlib') if name in sys.modules])\n"
    )
    assert commands.run(path).stdout == "['experiments.report']\n"


def test_commands_start_others_as_they_were_started(package, monkeypatch):
    assert command_names.command_line("sweeps.worker")[2:] == [PACKAGE, "sweeps.worker"]
    assert command_names.shown("train") == "lora-jax train"
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, PACKAGE)
        alone = command_names.command_line("sweeps.worker"), command_names.shown("train")
    assert alone == (
        [sys.executable, "-m", "experiments.sweeps.worker"],
        "python -m experiments.train",
    )


def test_the_package_finds_its_folders_where_they_are_installed(package, tmp_path, monkeypatch):
    assert package.folder() == ROOT
    (tmp_path / "experiments").mkdir()
    monkeypatch.setattr(package, "__file__", str(tmp_path / "__init__.py"))
    assert package.folder() == tmp_path


def test_the_version_of_the_package_is_that_of_its_code():
    """Its description links to no file, as it is shown where there are none."""
    done = interpreter("setup.py", "--long-description", "--version", cwd=ROOT)
    assert set(re.findall(r"\]\((\w+:|)", done.stdout)) == {"https:"}
    text = (ROOT / "lora_jax" / "__init__.py").read_text(encoding="utf-8")
    assert f'\n__version__ = "{done.stdout.splitlines()[-1]}"\n' in text


def defined():
    """Flags of every kind, by name."""
    values = flags.FlagValues()
    flags.DEFINE_string("folder", None, "The folder", flag_values=values)
    flags.DEFINE_string("name", "a", "The name.", flag_values=values)
    flags.DEFINE_bool("audit", True, "Look.", flag_values=values)
    flags.DEFINE_enum("size", "full", ["full", "smoke"], "How much.", flag_values=values)
    flags.DEFINE_list("rows", ["a", "b"], "The rows.", flag_values=values)
    flags.DEFINE_integer("rank", None, "The rank. The default is its own.", flag_values=values)
    flags.DEFINE_multi_string("sweep", [], "What varies.", flag_values=values)
    flags.mark_flag_as_required("folder", values)
    return values


@pytest.mark.parametrize(
    ("name", "usage", "meaning"),
    [
        ("folder", "--folder=TEXT", "The folder. The flag is required."),
        ("name", "--name=TEXT", "The name. The default is a."),
        ("audit", "--[no]audit", "Look. The default is --audit."),
        ("size", "--size=full|smoke", "How much. The default is full."),
        ("rows", "--rows=A,B,...", "The rows. The default is a,b."),
        ("rank", "--rank=INTEGER", "The rank. The default is its own."),
        (
            "sweep",
            "--sweep=TEXT",
            "What varies. The flag may be given several times. There is no default.",
        ),
    ],
)
def test_a_flag_is_explained_by_its_kind(name, usage, meaning):
    flag = defined()[name]
    assert (cli.usage(flag), cli.meaning(flag)) == (usage, meaning)
