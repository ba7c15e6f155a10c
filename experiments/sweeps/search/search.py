"""Search for the best trial: ask for trials, have them trained, and go by their scores.

What a search has asked for is in the sweep's folder, as search.json; the scores are in the records.
"""

import dataclasses
import itertools
import math
import shlex
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from experiments.analysis.recorded_runs import held_out, saved_metrics
from experiments.cli import refuse_ignored
from experiments.command_names import shown
from experiments.runs import rungs
from experiments.sweeps import jobs, sweep_flag, trials
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.search.space import MISSES, LeftOutError, Round, Space, ask, require_optuna
from experiments.sweeps.sweep_flag import MOST, Overrides
from experiments.sweeps.trials import Trial
from lora_jax.records import run_record, seal
from lora_jax.training.loop_settings import Loop

HELD_OUT = "--config.data.validation="
METHODS = ("tpe", "random", "halving")
SEEDS = ("seed", "draw")
"""The settings of which a search would choose the luckiest."""
Train = Callable[[Sequence[Trial], Sequence[Loop], int], None]
"""Trains those of some trials that have not ended; the number is the factor of halving, or 0."""

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

    @property
    def halving(self) -> int:
        """Of how many trials one goes on; 0 if none is stopped."""
        return self.factor if self.method == "halving" else 0

    def settings(self, specs: Sequence[str]) -> dict[str, Any]:
        """The flags that a search must keep; but for halving, trials and steps may grow."""
        kept = {"search": self.method, "sweep": list(specs), "sweep_seed": self.seed}
        if self.method == "tpe":
            kept["per_round"] = self.per_round
        if self.halving:
            kept |= {
                "halving_factor": self.factor,
                "trials": self.trials,
                "budget": self.budget,
            }
        return kept


def asked_by_flags(
    trials: int | None, seed: int, launcher: str, unfit: dict[str, bool]
) -> Asked | None:
    """The search that the flags ask for; None if they ask for none.

    Args:
      unfit: flags of a sweep that a search has no use for, and whether each is given.

    Raises:
      ValueError: a flag does not go with another.
    """
    method = _SEARCH.value
    if method is None:
        refuse_ignored((_BUDGET,), "it goes with --search")
    for flag, own in ((_PER_ROUND, "tpe"), (_FACTOR, "halving")):
        if method != own:
            refuse_ignored((flag,), f"it goes with --search={own}")
    if method is None:
        return None
    halving = method == "halving"
    for name, given in {
        **unfit,
        "launcher": launcher != "local",
        "processes": halving and flags.FLAGS["processes"].present,
        "retry": halving and bool(flags.FLAGS["retry"].value),
    }.items():
        if given:
            raise ValueError(
                f"--{name} does not go with --search={method}, which chooses the trials and makes "
                "the jobs itself, on this machine"
            )
    if trials is None and _BUDGET.value is None:
        raise ValueError(f"--search={method} needs --trials=N, --budget=STEPS, or both")
    per_round, factor = int(_PER_ROUND.value or 1), int(_FACTOR.value or 2)
    return Asked(method, seed, trials, _BUDGET.value, per_round, factor)


NAME = "search.json"


def score(folder: SweepFolder, trial: Trial, loop: Loop) -> float | None:
    """The metric of a trial's saved adapter; None if it has none, as it did not complete."""
    path = folder.run(trial.name)
    record = run_record.read(path) if path.exists() else None
    if record is None or record.status != "completed" or record.config_digest != trial.digest:
        return None
    value = saved_metrics(record).get(loop.metric)
    return value if value is not None and math.isfinite(value) else None


class Search:
    """A search in the folder of a sweep.

    Args:
      arguments: `--config=FILE:...`, and the settings of all trials.
      specs: the values of `--sweep` flags.
      say: what a line on the search's progress is given to.

    Raises:
      ValueError: the flags cannot be searched, or the folder has another search.
    """

    def __init__(
        self,
        asked: Asked,
        folder: SweepFolder,
        arguments: Sequence[str],
        specs: Sequence[str],
        say: Callable[[str], None] = print,
    ):
        file = arguments[0].removeprefix("--config=").partition(":")[0]
        if trials.own_sweep(file) != [{}]:
            raise ValueError(f"{file} has a sweep(), whose trials --search does not choose from")
        axes = [sweep_flag.parse(spec) for spec in specs]
        if not axes:
            raise ValueError(
                "--search: give what to search, such as "
                "--sweep=config.optimizer.learning_rate=log:1e-5:1e-2"
            )
        for axis in axes:
            if axis.key.rpartition(".")[2] in SEEDS:
                raise ValueError(
                    f"--sweep={axis.key}: --search would choose the luckiest seed; leave it out"
                )
        if asked.method == "tpe":
            require_optuna()
        self._asked, self._folder, self._say = asked, folder, say
        self._space = Space(folder, arguments, axes, asked.seed)
        self._settings = asked.settings(specs)
        self._rounds, self._left_out = self._read()
        self._loop = self._first_loop()
        if asked.halving and not self._loop.steps:
            raise ValueError(
                "--search=halving takes trials out while they train, and with "
                "config.train.epochs 0 none is trained"
            )
        self._most = self._affordable()

    def _read(self) -> tuple[list[list[Overrides]], list[dict[str, Any]]]:
        """The trials that were asked for, round by round, and combinations that cannot work.

        Of the latter, each has its `values`, and `why`. Both are empty before the search begins.

        Raises:
          ValueError: the folder has a search with other settings, or its file was changed.
        """
        path = self._folder.path / NAME
        if not path.exists():
            return [], []
        found = seal.read(path)
        for name, value in self._settings.items():
            # Earlier versions did not note the trials and the budget of a halving.
            if (there := found["settings"].get(name, value)) != value:
                raise ValueError(
                    f"{path} belongs to a search with --{name}={there}, not {value}; name another "
                    "--workdir"
                )
        return found["rounds"], found.get("left_out", [])

    def _write(self, best: dict[str, Any] | None = None) -> None:
        """Write the trials of all rounds, what was left out, and the best trial so far.

        Args:
          best: the name, the score and the flags of the best trial.
        """
        values = {"version": 1, "settings": self._settings, "best": best}
        more = {"rounds": self._rounds, "left_out": self._left_out}
        seal.write(self._folder.path / NAME, values | more)

    def first(self) -> tuple[list[Trial], list[Loop]]:
        """The trials of the first round."""
        found = self._rounds[0] if self._rounds else self._next()
        return self._space.named(found), [self._space.loop(each) for each in found]

    def outlook(self, first: Sequence[Loop]) -> str:
        """How many trials and steps there may be, going by the trials of the first round."""
        count, mean = len(first), statistics.fmean(loop.steps for loop in first)
        steps = self._cost(count)
        if not self._asked.halving:
            if self._asked.method == "tpe" or self._rounds:
                budget = self._asked.budget
                count = self._most if budget is None else min(self._most, int(budget // mean))
            steps = round(count * mean)
        return f"{count} trials in all, about {steps:,} training steps"

    def run(self, train: Train) -> list[str]:
        """Train all rounds, those of an earlier process first; return lines on the result.

        Raises:
          ValueError: no trial has a score, or another command has gone on with the search.
        """
        if self._read() != (self._rounds, self._left_out):
            raise ValueError(
                f"{self._folder.path}: another command has gone on with this search; give the "
                "command again"
            )
        for each in self._rounds:  # one by one, as before: trials of a round share checkpoints
            self._train(each, train)
        while new := self._next():
            self._rounds = [*self._rounds, new]
            self._write()
            self._train(new, train)
        return self._result()

    def _train(self, found: list[Overrides], train: Train) -> None:
        self._require_one_program(found)
        loops = [self._space.loop(each) for each in found]
        train(self._space.named(found), loops, self._asked.halving)

    def _next(self) -> list[Overrides]:
        """The trials of the next round; none after the last."""
        asked, known = self._asked, self._known()
        if asked.halving:
            return [] if known else self._halved()
        if (count := self._most - len(known)) <= 0:
            return []
        steps = sum(self._space.loop(each).steps for each in known)
        room = math.inf if asked.budget is None else asked.budget - steps
        if asked.method == "tpe":
            count = min(count, asked.per_round)
        found = Round(self._space, known, self._left_out, count, room)
        if asked.method == "tpe" and room > 0:
            ask(
                self._space.axes,
                [
                    *zip(known, self._scores(known), strict=True),
                    *((each["values"], None) for each in self._left_out),
                ],
                count,
                seed=asked.seed,
                maximise=self._loop.mode == "max",
                integer=self._space.integer,
                take=found.take,
            )
        self._fill(found)
        if not found.found:
            left = f"; {room} steps of --budget are left" if found.too_long else ""
            self._say(f"{len(known)} trials: {found.why}{left}")
        return found.found

    def _halved(self) -> list[Overrides]:
        """The trials of a search by halving, which has one round."""
        found = Round(self._space, [], self._left_out, self._most, math.inf)
        self._fill(found)
        count, budget = len(found.found), self._asked.budget
        while budget is not None and self._cost(count) > budget:  # fewer trials may cost more
            count -= 1
        self._cost(count)  # raises if they cannot be halved
        if not found.full:
            self._say(f"{count} trials: {found.why}")
        self._require_one_program(found.found[:count])
        return found.found[:count]

    def _require_one_program(self, found: Sequence[Overrides]) -> None:
        """Raise a ValueError if trials are to be halved, and are of several programs."""
        if self._asked.halving:
            programs = jobs.make([self._space.trial(each) for each in found], 0)
            if len(programs) > 1:
                raise ValueError(
                    "--search=halving trains one program, and these trials are of "
                    f"{len(programs)}: search numbers such as learning rates, of one variant"
                )

    def _fill(self, found: Round) -> None:
        """Fill a round with random draws, and say which combinations were left out of it."""
        before = found.left_out_before
        found.draw()
        for each in self._left_out[before:]:
            self._say(f"left out: {trials.written(each['values'])}: {each['why']}")

    def _known(self) -> list[Overrides]:
        return list(itertools.chain(*self._rounds))

    def _scores(self, known: Sequence[Overrides]) -> list[float | None]:
        return [score(self._folder, trial, self._loop) for trial in self._space.named(known)]

    def _first_loop(self) -> Loop:
        """The loop of the first combination that works and is no longer than the budget.

        Raises:
          ValueError: no combination is so.
        """
        budget, wrong, shortest = self._asked.budget, list[str](), math.inf
        for values in itertools.islice(self._space.drawn(), MISSES):
            try:
                loop = self._space.loop(values)
                self._space.require(values)
            except LeftOutError as error:
                wrong.append(f"{trials.written(values)}: {error}")
                continue
            if budget is None or loop.steps <= budget:
                return loop
            shortest = min(shortest, loop.steps)
        if shortest < math.inf:
            raise ValueError(f"--budget={budget} is too small for trials of {shortest} steps")
        raise ValueError(f"no combination of --sweep works, such as {wrong[0]}")

    def _affordable(self) -> int:
        """The most trials to train.

        Raises:
          ValueError: trials cannot be halved, or the budget of a halving has no trials or fewer
            than are asked for.
        """
        budget, asked, steps = self._asked.budget, self._asked.trials, self._loop.steps
        halving, most = self._asked.halving, MOST if budget is None else min(budget, MOST)
        cost = 0 if asked is None else self._cost(asked)
        if halving and budget is not None:
            if not (most := rungs.most_trials(steps, halving, budget)):
                raise ValueError(
                    f"--budget={budget} is too small for --search=halving: {halving} trials of "
                    f"{steps} steps take {self._cost(halving):,}"
                )
            if cost > budget:
                raise ValueError(
                    f"--trials={asked} take {cost:,} steps, and --budget={budget} has {most} "
                    "trials: leave one of the two out"
                )
        return most if asked is None else asked

    def _cost(self, count: int) -> int:
        if halving := self._asked.halving:
            return rungs.cost(rungs.plan(count, self._loop.steps, halving))
        return count * self._loop.steps

    def _result(self) -> list[str]:
        """Lines on the best trial and on what was spent, which the ledger gets, too."""
        known = self._known()
        made = self._space.named(known)
        pairs = zip(made, self._scores(known), strict=True)
        scored = [(trial, value) for trial, value in pairs if value is not None]
        records = (
            run_record.read(at) for each in made if (at := self._folder.run(each.name)).exists()
        )
        spent = sum(record.steps for record in records if record is not None)
        steps = f"{len(made)} trials, {spent:,} training steps in all"
        if not scored:
            raise ValueError(f"no trial has a score ({steps}): see {self._folder.path / 'logs'}")
        sign = 1 if self._loop.mode == "max" else -1
        trial, value = max(scored, key=lambda each: sign * each[1])
        flags, apart = list(trial.arguments), f"{trial.config.data.validation} held-out examples"
        then = f"the same {apart} score it"
        if held_out(trial.config):
            # The config's file may hold examples out, too, so leaving a flag out is not enough.
            flags = [each for each in flags if not each.startswith(HELD_OUT)] + [f"{HELD_OUT}0"]
            then = "no example is held out; the development set scores it"
        best = {"name": trial.name, "metric": self._loop.metric, "score": value, "flags": flags}
        self._write(best)
        own = self._folder.path
        own = own.resolve() if own.name in ("", "..") else own  # the new one must not be inside it
        workdir = f"--workdir={own}_best"
        again = shlex.join([*flags, workdir])
        return [
            f"best: {trial.name}, {self._loop.metric} {value:.4g} on {apart} ({steps})",
            f"to retrain with these settings ({then}): {shown('train')} {again}",
        ]
