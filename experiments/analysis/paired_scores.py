"""The scores of a contest's methods by seed, with what happened to the seeds that are missing.

A run that diverged is a result of its method, so it is not left out: it counts with its last score.
If it left none, the method has no number in this contest, as the mean of its other seeds would be
that of the lucky ones. A run that failed, or was killed, says nothing of its method: its seed is
missing.

**Pairs** have the same examples, their order and the head (`bought`). The variance of a difference
of two scores of one seed is the sum of their variances less twice their covariance. Without pairs,
it would be the sum. The ratio of the two says how many seeds give the same standard error: n pairs
are worth n / ratio seeds that are not paired. `noise_of_seeds` says how much differences from a
reference vary with seeds and scored examples.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from experiments.analysis import collect_runs, power, significance
from experiments.analysis.choose_methods import Contest, Method
from experiments.analysis.collect_runs import RunNumber
from experiments.analysis.scored_examples import Values
from experiments.analysis.significance import MeanDifference, over_seeds, over_tasks
from lora_jax.messages import agree


@dataclasses.dataclass(frozen=True)
class Scored:
    """A method's scores in points, by seed and draw; `notes` are on runs that did not complete."""

    key: str
    label: str
    scores: Mapping[RunNumber, float]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """Scores in points, (tasks, methods, seeds), of the methods and seeds that all tasks have."""

    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: np.ndarray
    notes: tuple[str, ...] = ()


def scored(method: Method) -> Scored:
    """The scores of the scored runs of a method's chosen setting."""
    if method.chosen is None:
        return Scored(method.key, method.label, {}, ("no run completed",))
    diverged, notes = method.last_scores, []
    if lost := [number for number, score in diverged.items() if score is None]:
        said = f"{_seeds(lost)} diverged and left no score, so it has no number"
        return Scored(method.key, method.label, {}, (said,))
    if diverged:
        they = agree(len(diverged), "counts", "count")
        notes.append(f"{_seeds(diverged)} diverged and {they} with the last score")
    failed = [run.number for run in method.runs if run.record.status == "failed"]
    if failed:
        notes.append(f"{_seeds(failed)} failed")
    return Scored(method.key, method.label, method.scores(), tuple(notes))


def common(first: Scored, second: Scored) -> tuple[np.ndarray, np.ndarray, str]:
    """The scores of two methods on their common seeds, (seeds,) each, in the order of the seeds.

    Where seeds share draws of the examples, it is the mean scores of each draw
    (`collect_runs.means_of_draws`). The text says how many seeds are missing in one of the two; it
    is empty if none is.
    """
    numbers = sorted(first.scores.keys() & second.scores.keys())
    every = first.scores.keys() | second.scores.keys()
    ours, theirs = (
        collect_runs.means_of_draws({n: each.scores[n] for n in numbers})
        for each in (first, second)
    )
    said = f"{len(numbers)} of {len(every)} seeds in common" if len(numbers) < len(every) else ""
    return ours, theirs, said


def common_examples(
    first: Scored, second: Scored, values: Values
) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """What each example adds to the scores that `common` gives, (seeds, examples) each.

    None if a run of a common seed lacks it, or all do; the text says how many.
    """
    numbers = first.scores.keys() & second.scores.keys()
    ours, theirs = values.get(first.key, {}), values.get(second.key, {})
    there = sum(number in ours and number in theirs for number in numbers)
    if there < len(numbers):
        return None, f"predictions of {there} of {len(numbers)} common seeds are known"
    made = (collect_runs.means_of_draws({n: each[n] for n in numbers}) for each in (ours, theirs))
    return (next(made), next(made)), ""


def table(contests: Sequence[Contest], keys: Sequence[str] = ()) -> Table:
    """The scores of some methods (by default all) on the seeds that they have in all contests.

    Methods without a number in one of the contests are left out, and said to be. A seed is that of
    its runs on all tasks, whatever draw each takes: one that trains on all examples draws none.

    Args:
      contests: one for each task.
      keys: of the methods.
    """
    tasks = [
        {m.key: scored(m) for m in contest.methods if m.key in keys or not keys}
        for contest in contests
    ]
    every = {key: each.label for task in tasks for key, each in task.items()}
    kept, notes = [], []
    for key, label in every.items():
        own = [task[key] if key in task else Scored(key, label, {}) for task in tasks]
        if all(each.scores for each in own):
            kept.append(own)
        else:
            notes.append(f"{label} is left out, as it has no number on one of the tasks")
    by_seed = [[_by_seed(each.scores) for each in own] for own in kept]
    sets = [set(each) for own in by_seed for each in own]
    seeds = sorted(set.intersection(*sets)) if sets else []
    if len(seeds) < (some := len(set().union(*sets))):
        notes.append(f"{len(seeds)} of {some} seeds count, as the others lack a method or a task")
    scores = [[[own[task][n] for n in seeds] for own in by_seed] for task in range(len(tasks))]
    made = np.array(scores, float).reshape(len(tasks), len(kept), len(seeds))
    return Table(tuple(own[0].label for own in kept), tuple(seeds), made, tuple(notes))


def _by_seed(scores: Mapping[RunNumber, float]) -> dict[int, float]:
    """The mean score of each seed, over its draws."""
    known: dict[int, list[float]] = {}
    for (seed, _), score in sorted(scores.items()):
        known.setdefault(seed, []).append(score)
    return {seed: statistics.fmean(own) for seed, own in known.items()}


def _seeds(numbers: Iterable[RunNumber]) -> str:
    seeds = [str(seed) for seed, _ in sorted(numbers)]
    return f"{agree(len(seeds), 'seed', 'seeds')} {', '.join(seeds)}"


@dataclasses.dataclass(frozen=True)
class Paired:
    """The variances of differences with pairs and without, in points²."""

    paired: float
    unpaired: float

    @property
    def ratio(self) -> float | None:
        """Below 1 if pairs help, above 1 if they harm; None if scores do not vary."""
        return self.paired / self.unpaired if self.unpaired > 0 else None


def bought(first: np.ndarray, second: np.ndarray) -> Paired:
    """What pairs bring in a comparison of two methods.

    Args:
      first, second: scores of the same seeds, (seeds,), at least two.
    """
    unpaired = float(first.var(ddof=1) + second.var(ddof=1))
    return Paired(float((first - second).var(ddof=1)), unpaired)


def pooled(parts: Sequence[Paired]) -> Paired:
    """What pairs bring on average over comparisons of about as many seeds, of one at least."""
    paired = statistics.fmean(part.paired for part in parts)
    return Paired(paired, statistics.fmean(part.unpaired for part in parts))


@dataclasses.dataclass(frozen=True)
class Noise:
    """That of one method, on the tasks where it has two seeds in common with the reference."""

    key: str
    label: str
    by_task: Mapping[str, MeanDifference]
    """The paired differences on each task, by its title, as `gains` tests them."""
    deviations: Mapping[str, float]
    """The sd of the paired differences over seeds in points, by task; 0 if they do not vary."""
    parts: Mapping[str, power.Task]
    """What their noise is of, by task; of seeds alone where the values of examples are missing."""
    pairing: Paired

    @property
    def mean(self) -> MeanDifference:
        """That over the tasks, as a report of gains has it."""
        return over_tasks(list(self.by_task.values()))


def noise_of_seeds(
    contests: Sequence[Contest],
    reference: str,
    examples: Mapping[str, Values] = MappingProxyType({}),
) -> list[Noise]:
    """The noise of each method that has two seeds in common with the reference on any task.

    Args:
      contests: one for each task, of one model.
      reference: the key of a method.
      examples: as for `gains.gains`.
    """
    scores: dict[str, dict[str, Scored]] = {}
    labels = {method.key: method.label for each in contests for method in each.methods}
    for contest in contests:
        for method in contest.methods:
            scores.setdefault(method.key, {})[contest.task_title] = scored(method)
    values = {contest.task_title: examples.get(contest.task, {}) for contest in contests}
    theirs, found = scores.pop(reference, {}), []
    for key, own in scores.items():
        pairs = {task: common(own[task], theirs[task])[:2] for task in own if task in theirs}
        known = {task: pair for task, pair in pairs.items() if len(pair[0]) > 1}
        if not known:
            continue
        seeds = {task: over_seeds(*pair) for task, pair in known.items()}
        by_task, sd = dict(seeds), {t: (e.error or 0.0) * math.sqrt(e.n) for t, e in seeds.items()}
        parts = {task: power.Task(own) for task, own in sd.items()}
        for task, (first, second) in known.items():
            both, _ = common_examples(own[task], theirs[task], values[task])
            if both is not None:
                by_task[task] = significance.over_both(first, second, *both)
                parts[task] = power.Task.of(significance.squares(first - second, both[0] - both[1]))
        paired = pooled([bought(*pair) for pair in known.values()])
        found.append(Noise(key, labels[key], by_task, sd, parts, paired))
    return found
