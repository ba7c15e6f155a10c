"""The combinations of values that a search may train: which cannot work, and which come next.

`ask` takes them from Optuna (TPE: Bergstra et al. 2011, NeurIPS 24). The trials of a round depend
only on the seed, the round and the results of earlier rounds. So a search that was killed asks for
the same trials again.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments.sweeps import sweep_flag, trials
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.preflight import Once, check, loop_of
from experiments.sweeps.sweep_flag import Axis, Overrides, Range, Values, written
from experiments.sweeps.trials import Trial, labels_of
from lora_jax.training.loop_settings import Loop

MISSES = 100
"""How many combinations in a row may not do, before a search gives up to find another one."""


class LeftOutError(ValueError):
    """A combination of values that cannot be trained, for what its settings say."""


class Space:
    """All combinations of a search's values.

    Args:
      arguments: `--config=FILE:...`, and the settings of all trials.
      seed: that of random draws.
    """

    def __init__(
        self, folder: SweepFolder, arguments: Sequence[str], axes: Sequence[Axis], seed: int
    ) -> None:
        self.axes = axes
        self.integer = trials.integers(arguments, [{}], axes).__contains__
        self._folder, self._arguments, self._seed = folder, arguments, seed
        self._labels = labels_of([axis.key for axis in axes])
        self._once = Once()
        self._made: dict[tuple[str, ...], Trial] = {}
        self._named: dict[tuple[str, ...], Trial] = {}

    def drawn(self) -> Iterator[Overrides]:
        """Different combinations at random, each time the same ones, until no other one is left."""
        return sweep_flag.draws(self.axes, self._seed, self.integer)

    def trial(self, values: Overrides) -> Trial:
        """The trial of a combination, without the name that its folder may have.

        Raises:
          LeftOutError: its flags are wrong, or it would be scored on no held-out examples.
        """
        key = tuple(values.values())
        if key not in self._made:
            with _left_out():
                trial = trials.make_one(self._arguments, values, self._labels)
                if not trial.config.data.validation:
                    raise ValueError(
                        "--search chooses by examples held out from training, so that the "
                        "development set stays unseen: set --config.data.validation=N, such as 400"
                    )
            self._made[key] = trial
        return self._made[key]

    def loop(self, values: Overrides) -> Loop:
        """The training loop of a combination that may not work otherwise; raises as `trial`."""
        with _left_out():
            return loop_of(self.trial(values).config, self._once)

    def require(self, values: Overrides) -> None:
        """Raise a LeftOutError if a combination cannot work."""
        with _left_out():
            check(self.trial(values).config, self._once)

    def named(self, asked: Sequence[Overrides]) -> list[Trial]:
        """The trials of combinations that work, with their names.

        Raises:
          ValueError: a trial's folder has a run of other settings.
        """
        if new := [each for each in asked if tuple(each.values()) not in self._named]:
            taken = [trial.name for trial in self._named.values()]
            apart = trials.named_apart([self.trial(each) for each in new], taken)
            for each, trial in zip(new, self._folder.known(apart), strict=True):
                self._named[tuple(each.values())] = trial
        return [self._named[tuple(each.values())] for each in asked]


@contextlib.contextmanager
def _left_out() -> Iterator[None]:
    """Errors of settings become a LeftOutError; others, such as of a file, end the search."""
    try:
        yield
    except ValueError as error:
        raise LeftOutError(" ".join(str(error).split())) from error


class Round:
    """Collects combinations for a round of a search.

    Args:
      known: those of earlier rounds.
      left_out: those that cannot work; more of them are added.
      count: how many to collect.
      room: how many steps they may have together.
    """

    def __init__(
        self,
        space: Space,
        known: Sequence[Overrides],
        left_out: list[dict[str, Any]],
        count: int,
        room: float,
    ):
        self.found: list[Overrides] = []
        self.too_long = 0
        """How many combinations had more steps than were left."""
        self.why = ""
        """Why the round is not full."""
        self.left_out_before = len(left_out)
        self._space, self._left_out, self._count, self._room = space, left_out, count, room
        self._seen = {tuple(each.values()) for each in known}
        self._seen |= {tuple(each["values"].values()) for each in left_out}
        self._digests = {space.trial(each).digest: each for each in known}
        self._misses = 0

    @property
    def full(self) -> bool:
        return len(self.found) >= self._count

    def take(self, values: Overrides) -> bool:
        """Add a combination, if it is another one that works and is short enough."""
        key = tuple(values.values())
        if self.full or key in self._seen:
            return False
        self._seen.add(key)
        self._misses += 1
        try:
            steps = self._space.loop(values).steps
            if steps > self._room:
                self.too_long += 1
                return False
            digest = self._space.trial(values).digest
            if (same := self._digests.get(digest)) is not None:
                raise LeftOutError(f"its settings are those of {trials.written(same)}")
            self._space.require(values)
        except LeftOutError as error:
            self._left_out.append({"values": values, "why": str(error)})
            return False
        self._digests[digest] = values
        self._room -= steps
        self._misses = 0
        self.found.append(values)
        return True

    def draw(self) -> None:
        """Fill the round with random draws."""
        self._misses = 0
        for values in self._space.drawn():
            if self.full:
                return
            if self._misses >= MISSES:
                self.why = f"none of {MISSES} other combinations can be trained"
                return
            self.take(values)
        self.why = "all combinations of --sweep have been tried"


ATTEMPTS = 100
"""How often a trial is asked for, to get another one that may be trained."""
AT_RANDOM = 10
"""The first trials are drawn at random: without results there is nothing to go by."""


def require_optuna() -> Any:
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
    optuna = require_optuna()
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
