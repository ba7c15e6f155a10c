"""Search for the best trial: ask for trials, have them trained, and go by their scores."""

import dataclasses
import itertools
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from experiments.analysis.recorded_runs import held_out
from experiments.command_names import shown
from experiments.runs import rungs
from experiments.search.ask import ask, require
from experiments.search.ledger import Ledger
from experiments.search.objective import require_held_out, score, spent
from experiments.sweeps import jobs, sweep_flag, trials
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.preflight import Once, check_trials
from experiments.sweeps.sweep_flag import Overrides
from experiments.sweeps.trials import Trial
from lora_jax.training.loop_settings import Loop

HELD_OUT = "--config.data.validation="
METHODS = ("tpe", "random", "halving")
Train = Callable[[Sequence[Trial], Sequence[Loop], int], None]
"""Trains those of some trials that have not ended; the number is the factor of halving, or 0."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a search is to do."""

    method: str
    seed: int
    trials: int | None
    """How many trials; None for as many as the budget has."""
    budget: int | None
    """The most training steps of all trials together; None for no limit."""
    per_round: int
    """How many trials `tpe` asks for at a time."""
    factor: int
    """Of how many trials one goes on at a rung of `halving`."""

    def settings(self, specs: Sequence[str]) -> dict[str, Any]:
        """The flags that a search must keep; the numbers of trials and steps may grow."""
        kept = {"search": self.method, "sweep": list(specs), "sweep_seed": self.seed}
        if self.method == "tpe":
            kept["per_round"] = self.per_round
        if self.method == "halving":
            kept["halving_factor"] = self.factor
        return kept


class Search:
    """A search in the folder of a sweep.

    Args:
      arguments: `--config=FILE:...`, and the settings of all trials.
      specs: the values of `--sweep` flags.

    Raises:
      ValueError: the flags cannot be searched, or the folder has another search.
    """

    def __init__(
        self, asked: Asked, folder: SweepFolder, arguments: Sequence[str], specs: Sequence[str]
    ):
        file = arguments[0].removeprefix("--config=").partition(":")[0]
        if trials.own_sweep(file) != [{}]:
            raise ValueError(f"{file} has a sweep(), whose trials --search does not choose from")
        self._axes = [sweep_flag.parse(spec) for spec in specs]
        if not self._axes:
            raise ValueError(
                "--search: give what to search, such as "
                "--sweep=config.optimizer.learning_rate=log:1e-5:1e-2"
            )
        if any(axis.key == "config.seed" for axis in self._axes):
            raise ValueError(
                "--sweep=config.seed: --search would choose the luckiest seed; leave it out"
            )
        if asked.method == "tpe":
            require()
        self._asked, self._folder, self._arguments = asked, folder, arguments
        self._integer = trials.integers(arguments, [{}], self._axes).__contains__
        self._ledger = Ledger(folder.path, asked.settings(specs))
        self._rounds = self._ledger.rounds()
        self._once = Once()
        self._known: dict[tuple[str, ...], tuple[Trial, Loop]] = {}
        ((probe, self._loop),) = self._made(self._drawn(1))
        require_held_out(probe)
        self.trials = self._affordable()

    def first(self) -> tuple[list[Trial], list[Loop]]:
        """The trials of the first round."""
        made = self._made(self._rounds[0] if self._rounds else self._next([]))
        return [trial for trial, _ in made], [loop for _, loop in made]

    def cost(self) -> int:
        """The training steps of the search, if all trials have as many steps."""
        return self._cost(self.trials)

    def run(self, train: Train) -> list[str]:
        """Train all rounds, those of an earlier process first; return lines on the result.

        Raises:
          ValueError: no trial has a score.
        """
        halving = self._asked.factor if self._asked.method == "halving" else 0
        for each in self._rounds:  # one by one, as before: trials of a round share checkpoints
            self._train(self._of_one_program(each), train, halving)
        while new := self._next(self._rounds):
            rounds = [*self._rounds, new]
            if self._over_budget(rounds):
                break
            self._ledger.write(rounds)
            self._rounds = rounds
            self._train(new, train, halving)
        return self._result()

    def _train(self, found: list[Overrides], train: Train, halving: int) -> None:
        made = self._made(found)
        train([trial for trial, _ in made], [loop for _, loop in made], halving)

    def _next(self, rounds: Sequence[list[Overrides]]) -> list[Overrides]:
        """The trials of the next round; none after the last."""
        known = list(itertools.chain(*rounds))
        left = self.trials - len(known)
        if left <= 0:
            return []
        if self._asked.method != "tpe":
            if known and self._asked.method == "halving":
                raise ValueError(
                    f"--trials={self.trials}: a search by halving cannot grow; it has {len(known)} "
                    "trials already. Name another --workdir"
                )
            return self._of_one_program(self._drawn(self.trials)[len(known) :])
        told = list(zip(known, self._scores(self._made(known)), strict=True))
        return ask(
            self._axes,
            told,
            min(left, self._asked.per_round),
            seed=self._asked.seed,
            maximise=self._loop.mode == "max",
            integer=self._integer,
        )

    def _of_one_program(self, new: list[Overrides]) -> list[Overrides]:
        """The same trials; a ValueError if they are to be halved and are of several programs."""
        if self._asked.method == "halving":
            programs = jobs.make([trial for trial, _ in self._made(new)], 0)
            if len(programs) > 1:
                raise ValueError(
                    f"--search=halving trains one program, and these trials are of {len(programs)}:"
                    " search numbers such as learning rates, of one variant"
                )
        return new

    def _drawn(self, count: int) -> list[Overrides]:
        return sweep_flag.draw(self._axes, count, self._asked.seed, self._integer)

    def _made(self, overrides: Sequence[Overrides]) -> list[tuple[Trial, Loop]]:
        """The trials with these overrides, checked, and their loops; each is made once."""
        new = [each for each in overrides if tuple(each.values()) not in self._known]
        if new:
            made = self._folder.known(trials.make(self._arguments, new))
            checked = zip(made, check_trials(made, self._once), strict=True)
            for each, found in zip(new, checked, strict=True):
                self._known[tuple(each.values())] = found
        return [self._known[tuple(each.values())] for each in overrides]

    def _scores(self, made: Sequence[tuple[Trial, Loop]]) -> list[float | None]:
        return [score(self._folder, trial, self._loop) for trial, _ in made]

    def _affordable(self) -> int:
        """How many trials to train.

        Raises:
          ValueError: the budget has no trial, or fewer than are asked for.
        """
        budget, asked, steps = self._asked.budget, self._asked.trials, self._loop.steps
        if asked is not None and (budget is None or self._cost(asked) <= budget):
            if asked < 1:
                raise ValueError(f"--trials must be positive, got {asked}")
            self._cost(asked)  # raises if they cannot be halved
            return asked
        assert budget is not None, "search_flags asks for one of the two"
        if self._asked.method == "halving":
            most = rungs.most_trials(steps, self._asked.factor, budget)
        else:
            most = budget // steps
        if asked is not None:
            raise ValueError(
                f"--trials={asked} take {self._cost(asked):,} steps, and --budget={budget} has "
                f"{most} trials: leave one of the two out"
            )
        if not most:
            raise ValueError(f"--budget={budget} is too small for trials of {steps} steps")
        return most

    def _cost(self, count: int) -> int:
        if self._asked.method == "halving":
            return rungs.cost(rungs.plan(count, self._loop.steps, self._asked.factor))
        return count * self._loop.steps

    def _over_budget(self, rounds: Sequence[list[Overrides]]) -> bool:
        """Whether trials of unequal lengths take more steps than the budget has."""
        budget = self._asked.budget
        if budget is None or self._asked.method == "halving":
            return False
        made = self._made(list(itertools.chain(*rounds)))
        return sum(loop.steps for _, loop in made) > budget

    def _result(self) -> list[str]:
        """Lines on the best trial and on what was spent, which the ledger gets, too."""
        made = self._made(list(itertools.chain(*self._rounds)))
        pairs = zip(made, self._scores(made), strict=True)
        scored = [(trial, value) for (trial, _), value in pairs if value is not None]
        total = spent(self._folder, [trial for trial, _ in made])
        steps = f"{len(made)} trials, {total:,} training steps in all"
        if not scored:
            raise ValueError(f"no trial has a score ({steps}): see {self._folder.path / 'logs'}")
        sign = 1 if self._loop.mode == "max" else -1
        trial, value = max(scored, key=lambda each: sign * each[1])
        own = held_out(trial.config)
        flags = [
            "--config.data.validation=0" if own and each.startswith(HELD_OUT) else each
            for each in trial.arguments
        ]
        best = {"name": trial.name, "metric": self._loop.metric, "score": value, "flags": flags}
        self._ledger.write(self._rounds, best)
        apart = trial.config.data.validation
        workdir = f"--workdir={self._folder.path}_best"  # outside the search's own folder
        then = "on all examples, scored on the development set" if own else "again"
        return [
            f"best: {trial.name}, {self._loop.metric} {value:.4g} on {apart} held-out examples "
            f"({steps})",
            f"to train it {then}: {shown('train')} {shlex.join([*flags, workdir])}",
        ]
