"""The --track flag of the commands that train."""

import pkgutil
from collections.abc import Sequence

from absl import flags

from experiments.tracking import find
from lora_jax.suggest import nearest

_TRACK = flags.DEFINE_list(
    "track",
    [],
    "Copy metrics to these trackers, too: tensorboard, wandb, trackio, mlflow, or my_package.mine.",
)


def wanted() -> tuple[str, ...]:
    """The names of the trackers that the flag gives.

    Raises:
      ValueError: one line on a name that is unknown or given twice, or on a missing package.
    """
    return checked(_TRACK.value)


def checked(names: Sequence[str]) -> tuple[str, ...]:
    """The names, if each is a tracker whose package is installed; raises as `wanted`."""
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"--track={','.join(names)} names '{name}' twice")
        _require(name)
    return tuple(names)


def _require(name: str) -> None:
    given = f"--track={name}"
    own = "." in name and all(part.isidentifier() for part in name.split("."))
    if not own and name not in find.names():
        raise ValueError(f"{given} is no tracker; nearest: {nearest(name, find.names())}")
    try:
        package = find.find(name).package
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{name}.".startswith(f"{missing}."):  # the file exists, and imports another
            raise ValueError(f"{given}: it imports '{missing}', which is not installed") from None
        parent, _, last = missing.rpartition(".")
        said = f"'{parent}' has no module" if parent else "PYTHONPATH has no module"
        raise ValueError(f"{given}: {said} '{last}'; nearest: {_beside(parent, last)}") from None
    except ValueError as error:
        raise ValueError(f"{given}: {error}") from error
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        raise ValueError(f"{given}: {type(error).__name__}: {error}") from error
    if not find.is_installed(package):
        extra = package if own else f'"lora-jax[{name}]"'
        raise ValueError(f"{given} needs {package}, which is not installed: pip install {extra}")


def _beside(parent: str, name: str) -> str:
    """The nearest modules of a package, or the nearest trackers of the project's own."""
    if not parent:
        return nearest(name, find.names())
    paths = getattr(__import__(parent, fromlist=["_"]), "__path__", [])
    modules = [each.name for each in pkgutil.iter_modules(paths)]
    return nearest(f"{parent}.{name}", [f"{parent}.{each}" for each in modules])
