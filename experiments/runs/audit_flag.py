"""The --audit flag of all commands that train."""

from absl import flags

_AUDIT = flags.DEFINE_bool(
    "audit",
    True,
    "Before training, compare the compiled step with NumPy's results, and stop if it is wrong.",
)


def wanted() -> bool:
    return bool(_AUDIT.value)
