"""The flags of `experiments.sweep` that search for settings."""

from absl import flags

from experiments.cli import refuse_ignored
from experiments.search.search import METHODS, Asked

_SEARCH = flags.DEFINE_enum(
    "search",
    None,
    METHODS,
    "Search the values of --sweep: tpe asks Optuna for trials, random draws them, and halving "
    "also takes the worst out while they train.",
)
_BUDGET = flags.DEFINE_integer(
    "budget", None, "The most training steps of all trials of --search together.", lower_bound=1
)
_PER_ROUND = flags.DEFINE_integer(
    "per_round", 4, "How many trials tpe asks for at a time; they train together.", lower_bound=1
)
_FACTOR = flags.DEFINE_integer(
    "halving_factor", 3, "At a rung of halving, one of so many trials goes on.", lower_bound=2
)


def asked(trials: int | None, seed: int, launcher: str, unfit: dict[str, bool]) -> Asked | None:
    """The search that the flags ask for; None if they ask for none.

    Args:
      unfit: flags of a sweep that a search has no use for, and whether each is given.

    Raises:
      ValueError: a flag does not go with another.
    """
    if _SEARCH.value is None and _BUDGET.value is not None:
        raise ValueError(f"--budget goes with --search, such as --search={METHODS[0]}")
    for flag, method in ((_PER_ROUND, "tpe"), (_FACTOR, "halving")):
        if _SEARCH.value != method:
            refuse_ignored((flag,), f"it goes with --search={method}")
    if _SEARCH.value is None:
        return None
    for name, given in unfit.items():
        if given:
            raise ValueError(
                f"--{name} does not go with --search, which chooses the trials and makes the jobs "
                "itself"
            )
    if launcher != "local":
        raise ValueError(f"--launcher={launcher}: --search runs on this machine; leave it out")
    if _SEARCH.value == "halving" and flags.FLAGS["processes"].present:
        raise ValueError(
            "--processes does not go with --search=halving, which trains one program in one process"
        )
    if _SEARCH.value == "halving" and flags.FLAGS["retry"].value:
        raise ValueError(
            "--retry does not go with --search=halving, where a diverged trial has lost at its rung"
        )
    if trials is None and _BUDGET.value is None:
        raise ValueError(f"--search={_SEARCH.value} needs --trials=N, --budget=STEPS, or both")
    return Asked(
        str(_SEARCH.value),
        seed,
        trials,
        _BUDGET.value,
        int(_PER_ROUND.value or 1),
        int(_FACTOR.value or 2),
    )
