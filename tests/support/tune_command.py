"""`experiments.tune` in the process of a test, without trackers and audit."""

import types

from experiments import tune

DEFAULTS = {"rows": [], "columns": [], "methods": [], "tasks": []}
DEFAULTS |= {"adapters": True, "execution": None, "register": False, "untrained": False}


def give(monkeypatch, study, workdir, argument="size=smoke", **given):
    """Give the command with these flags."""
    own = {"study": study, "workdir": str(workdir), "argument": argument}
    for flag, value in (DEFAULTS | own | given).items():
        monkeypatch.setattr(tune, f"_{flag.upper()}", types.SimpleNamespace(value=value))
    monkeypatch.setattr(tune, "wanted", lambda: False)
    monkeypatch.setattr(tune.track_flag, "wanted", tuple)
    tune.tune()
