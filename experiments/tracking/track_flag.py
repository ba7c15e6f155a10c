"""The --track flag of the commands that train."""

from collections.abc import Sequence

from absl import flags

from experiments.tracking import trackers
from lora_jax.messages import require_known

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
        given = f"--track={name}"
        if name in names[:number]:
            raise ValueError(f"--track={','.join(names)} names '{name}' twice")
        if "." not in name:
            require_known(name, trackers.TRACKERS, f"{given} is not a tracker")
        try:
            package = trackers.find(name).package
        except (Exception, SystemExit) as error:  # a user's file may raise anything
            raise ValueError(f"{given}: {type(error).__name__}: {error}") from error
        if not trackers.is_installed(package):
            extra = package if "." in name else f'"lora-jax[{name}]"'
            raise ValueError(
                f"{given} needs {package}, which is not installed: pip install {extra}"
            )
    return tuple(names)
