"""The --track flag of the commands that train."""

import pkgutil
from collections.abc import Sequence

from absl import flags

from experiments.tracking import trackers
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
        own = "." in name and all(part.isidentifier() for part in name.split("."))
        if not own and name not in trackers.TRACKERS:
            near = nearest(name, trackers.TRACKERS)
            raise ValueError(f"--track={name} is no tracker; nearest: {near}")
        package = _package(name)
        if not trackers.is_installed(package):
            extra = package if own else f'"lora-jax[{name}]"'
            raise ValueError(
                f"--track={name} needs {package}, which is not installed: pip install {extra}"
            )
    return tuple(names)


def _package(name: str) -> str:
    """The package that a tracker needs; one line on a module of the user's that is wrong."""
    given = f"--track={name}"
    try:
        return trackers.find(name).package
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{name}.".startswith(f"{missing}."):  # the file exists, and imports another
            raise ValueError(f"{given}: it imports '{missing}', which is not installed") from None
        parent, _, last = missing.rpartition(".")
        said, near = "PYTHONPATH has no module", nearest(last, trackers.TRACKERS)
        if parent:
            paths = getattr(__import__(parent, fromlist=["_"]), "__path__", [])
            modules = [f"{parent}.{each.name}" for each in pkgutil.iter_modules(paths)]
            said, near = f"'{parent}' has no module", nearest(missing, modules)
        raise ValueError(f"{given}: {said} '{last}'; nearest: {near}") from None
    except ValueError as error:
        raise ValueError(f"{given}: {error}") from error
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        raise ValueError(f"{given}: {type(error).__name__}: {error}") from error
