"""The names of the launchers, and which flags are whose."""

from absl import flags

LAUNCHERS = ("local", "slurm", "ray", "kubernetes", "print")


def require_own_flags(launcher: str, values: flags.FlagValues) -> None:
    """Raise a ValueError if a flag was given that only another launcher reads.

    A launcher's own flags begin with its name: `--slurm_partition`.
    """
    for name in values:
        owner = name.partition("_")[0]
        if owner in LAUNCHERS and owner != launcher and values[name].present:
            raise ValueError(
                f"--{name} goes with --launcher={owner}, and --launcher={launcher} would ignore it"
            )
