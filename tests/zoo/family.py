"""A stranger's model of the zoo: a forward, its parameters, and inputs."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

PACKAGES = Path(__file__).parent / "packages"


class Family(NamedTuple):
    forward: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    targets: str = "all-linear"


def families() -> dict[str, Callable[[], Family]]:
    """Every public function of every file of `packages`."""
    found = {}
    for path in sorted(PACKAGES.glob("[a-z]*.py")):
        module = importlib.import_module(f"zoo.packages.{path.stem}")
        for name, maker in vars(module).items():
            own = isinstance(maker, FunctionType) and maker.__module__ == module.__name__
            if own and not name.startswith("_"):
                found[f"{path.stem}.{name}"] = maker
    return found
