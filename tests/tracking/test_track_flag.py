"""What is wrong with --track is said in one line, before anything is trained."""

import commands
import pytest

from experiments.tracking import trackers
from experiments.tracking.track_flag import checked

OWN = "own_trackers.recorder"


def test_trackers_are_found_without_their_libraries(monkeypatch):
    assert trackers.TRACKERS.keys() == {"mlflow", "tensorboard", "trackio", "wandb"}
    assert not trackers.TRACKERS.keys() & vars(trackers).keys()  # no module imports one
    assert not trackers.is_installed("no_such_package.inside")
    assert trackers.is_installed("email.message") and trackers.is_installed("")
    monkeypatch.setattr(trackers, "is_installed", lambda package: True)
    assert checked(["wandb", OWN]) == ("wandb", OWN)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["tensorbord"], "tensorbord is no tracker; nearest: 'tensorboard'"),
        (
            ["own_trackers.recordr"],
            "own_trackers.recordr: 'own_trackers' has no module 'recordr'; nearest: "
            "'own_trackers.recorder'",
        ),
        (
            ["no_such_package.mine"],
            "no_such_package.mine: PYTHONPATH has no module 'no_such_package'; nearest: ",
        ),
        (
            ["own_trackers.nothing"],
            "own_trackers.nothing: 'own_trackers.nothing' must define one Tracker, and defines 0",
        ),
        (["raising_trackers.exits"], "raising_trackers.exits: SystemExit: 0"),
        (["raising_trackers.fails"], "raising_trackers.fails: RuntimeError: no"),
        ([OWN, OWN], f"{OWN},{OWN} names '{OWN}' twice"),
        (["wandb"], 'wandb needs wandb, which is not installed: pip install "lora-jax[wandb]"'),
    ],
)
def test_what_is_wrong_is_one_line(names, said, tmp_path, monkeypatch):
    """A module that exits must not end the command as if all were well."""
    (tmp_path / "raising_trackers").mkdir()
    for name, error in (("exits", "SystemExit(0)"), ("fails", "RuntimeError('no')")):
        (tmp_path / "raising_trackers" / f"{name}.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(trackers, "is_installed", lambda package: not package)
    with pytest.raises(ValueError) as error:
        checked(names)
    assert str(error.value).startswith(f"--track={said}") and "\n" not in str(error.value)


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
