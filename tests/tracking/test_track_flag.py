"""What is wrong with --track is said in one line, before anything is trained."""

import sys

import commands
import pytest

from experiments.tracking import find
from experiments.tracking.track_flag import checked


def said(*names):
    with pytest.raises(ValueError) as error:
        checked(names)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_file_is_a_tracker_that_does_not_import_its_library():
    before = set(sys.modules)
    kinds = {name: find.find(name) for name in find.names()}
    assert kinds.keys() >= {"mlflow", "tensorboard", "trackio", "wandb"}
    assert all(kind.package == name for name, kind in kinds.items())
    loaded = {name.partition(".")[0] for name in sys.modules.keys() - before}
    assert not loaded & {"mlflow", "tensorboard", "trackio", "wandb"}


def test_trackers_of_the_project_and_of_ones_own(monkeypatch):
    monkeypatch.setattr(find, "is_installed", lambda package: True)
    assert checked(["wandb", "own_trackers.recorder"]) == ("wandb", "own_trackers.recorder")


def test_unknown_names_get_the_nearest():
    assert said("tensorbord").startswith("--track=tensorbord is no tracker; nearest: 'tensorboard'")
    assert said("own_trackers.recordr").startswith(
        "--track=own_trackers.recordr: 'own_trackers' has no module 'recordr'; "
        "nearest: 'own_trackers.recorder'"
    )
    assert said("no_such_package.mine").startswith(
        "--track=no_such_package.mine: PYTHONPATH has no module 'no_such_package'; nearest: "
    )


def test_a_module_must_define_a_tracker():
    assert said("own_trackers.nothing") == (
        "--track=own_trackers.nothing: 'own_trackers.nothing' must define one Tracker, and "
        "defines 0"
    )


@pytest.mark.parametrize("error", ["SystemExit(0)", "RuntimeError('no')"])
def test_a_module_that_raises_is_said(error, tmp_path, monkeypatch):
    """One that exits must not end the command as if all were well."""
    (tmp_path / "raising_trackers").mkdir()
    (tmp_path / "raising_trackers" / "mine.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    kind, _, value = error.strip("')").partition("(")
    expected = f"--track=raising_trackers.mine: {kind}: {value.strip(chr(39))}"
    assert said("raising_trackers.mine") == expected


def test_a_name_is_given_once(monkeypatch):
    monkeypatch.setattr(find, "is_installed", lambda package: True)
    assert said("own_trackers.recorder", "own_trackers.recorder").endswith(
        "names 'own_trackers.recorder' twice"
    )


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
    monkeypatch.setattr(find, "is_installed", lambda package: False)
    assert said("wandb") == (
        '--track=wandb needs wandb, which is not installed: pip install "lora-jax[wandb]"'
    )


def test_a_package_may_be_inside_another():
    assert not find.is_installed("no_such_package.inside")
    assert find.is_installed("email.message") and find.is_installed("")


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--config=configs/quickstart.py:size=smoke"),
        ("sweep", "--config=configs/quickstart.py:size=smoke", "--sweep=config.seed=0:2"),
        ("tune", "--study=against_lora"),
    ],
    ids=lambda each: each[0],
)
def test_commands_say_so_before_they_begin(command, tmp_path):
    name, *flags = command
    workdir = tmp_path / "run"
    done = commands.run(f"experiments.{name}", *flags, f"--workdir={workdir}", "--track=tensorbord")
    assert done.returncode == 1 and not workdir.exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --track=tensorbord is no tracker; nearest: 'tensorboard'")
