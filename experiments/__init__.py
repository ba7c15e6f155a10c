"""The commands (`python -m experiments.train` and the others), and the packages that they use.

A package may import only those to its left: `setup <- tracking <- planning <- runs <- imports <-
serving <- sweeps <- analysis <- studies <- catalogue <- exports <- reports`. The commands import
these and `cli`; nothing imports a command. `tests/test_imports.py` keeps this order.

In Python, `experiments.load_run` gives a finished run as a function of texts.
"""

from typing import Any

from experiments.command_names import prepare

prepare()


def __getattr__(name: str) -> Any:
    """`load_run`, which takes seconds to import."""
    if name != "load_run":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from experiments.runs.load_run import load_run

    return load_run
