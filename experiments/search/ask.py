"""Ask Optuna which trials to train next (TPE: Bergstra et al. 2011, NeurIPS 24).

The trials of a round depend only on the seed, the round and the results of earlier rounds. So a
search that was killed asks for the same trials again.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from experiments.sweeps.sweep_flag import Axis, Overrides, Range, Values, written

ATTEMPTS = 100
"""How often a trial is asked for, to get another one that may be trained."""
AT_RANDOM = 10
"""The first trials are drawn at random: without results there is nothing to go by."""


def require() -> Any:
    """Import Optuna; raise a ValueError if it is not installed."""
    try:
        return importlib.import_module("optuna")
    except ModuleNotFoundError as error:
        raise ValueError(
            '--search=tpe needs optuna: pip install "lora-jax[search]", or --search=random'
        ) from error


def ask(
    axes: Sequence[Axis],
    told: Sequence[tuple[Overrides, float | None]],
    count: int,
    *,
    seed: int,
    maximise: bool,
    integer: Callable[[str], bool],
    take: Callable[[Overrides], bool] = lambda _: True,
) -> list[Overrides]:
    """The next trials, at most `count`: fewer if no others are found that are new.

    Args:
      axes: the values of `--sweep` flags.
      told: the trials of earlier rounds, with their scores; None for one without a score.
      seed: the seed of the search.
      integer: whether a key takes integers.
      take: whether a new combination of values becomes a trial.
    """
    optuna = require()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=(seed * 1_000_003 + len(told)) % 2**32,
        n_startup_trials=AT_RANDOM,
        constant_liar=True,  # the trials of a round are told apart before they have scores
    )
    study = optuna.create_study(direction="maximize" if maximise else "minimize", sampler=sampler)
    space = {axis.key: _distribution(optuna, axis, integer) for axis in axes}
    states = optuna.trial.TrialState
    for overrides, score in told:
        study.add_trial(
            optuna.trial.create_trial(
                params={axis.key: _value(axis, overrides[axis.key], integer) for axis in axes},
                distributions=space,
                value=score,
                state=states.FAIL if score is None else states.COMPLETE,
            )
        )
    known, found, misses = [overrides for overrides, _ in told], list[Overrides](), 0
    while len(found) < count and misses < ATTEMPTS:
        trial = study.ask(space)
        new = {axis.key: _text(axis, trial.params[axis.key], integer) for axis in axes}
        if new not in known and take(new):
            found.append(new)
            misses = 0
        else:
            study.tell(trial, state=states.FAIL)
            misses += 1
        known.append(new)
    return found


def _distribution(optuna: Any, axis: Axis, integer: Callable[[str], bool]) -> Any:
    if isinstance(axis, Values):
        return optuna.distributions.CategoricalDistribution(axis.texts)
    log = axis.kind == "log"
    if integer(axis.key):
        return optuna.distributions.IntDistribution(*axis.integers, log=log)
    return optuna.distributions.FloatDistribution(axis.low, axis.high, log=log)


def _value(axis: Axis, text: str, integer: Callable[[str], bool]) -> Any:
    """A value of a trial as Optuna has it."""
    if isinstance(axis, Values):
        return text
    return int(text) if integer(axis.key) else float(text)


def _text(axis: Axis, value: Any, integer: Callable[[str], bool]) -> str:
    return written(axis, value, integer(axis.key)) if isinstance(axis, Range) else value
