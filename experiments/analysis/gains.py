"""What methods gain over the reference of a study, on each task and over all of them together.

`changed_without_a_task` names the verdicts that depend on a single one of the tasks.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np

from experiments.analysis import power, significance
from experiments.analysis.choose_methods import Contest
from experiments.analysis.paired_scores import Scored, common, common_examples, scored
from experiments.analysis.scored_examples import Values
from experiments.analysis.significance import (
    LEVEL,
    Estimate,
    MeanDifference,
    between_tasks,
    holm,
    new_task,
    over_seeds,
    over_tasks,
)
from lora_jax.messages import require_known

Verdict = Literal["better", "worse", "equivalent", "undecided"]


@dataclasses.dataclass(frozen=True)
class OverSeeds:
    """What the same tests say of new seeds alone, on the same examples."""

    over_tasks: Estimate
    adjusted: float | None
    equivalent: float | None
    verdict: Verdict
    upper: float | None = None


@dataclasses.dataclass(frozen=True)
class Gain:
    """A method's scores minus those of the reference, paired by seed and example.

    What is tested is of new seeds and new examples (`significance.over_both`). On a task where the
    values of examples are not known it is of new seeds alone, and the notes say so.
    """

    key: str
    label: str
    by_task: Mapping[str, Estimate]
    """Of each task, by its name; without the tasks where the method has no number."""
    over_tasks: Estimate
    """The mean over the tasks of `by_task`, all of the same weight."""
    new_task: Estimate | None
    """The mean of all tasks of which these are a sample (`significance.new_task`)."""
    between_tasks: float | None
    """The sd of its true differences between such tasks, without the noise of seeds and
    examples."""
    adjusted: float | None
    """Holm's p value of `over_tasks` in its family of tests."""
    equivalent: float | None
    """Holm's p value of two one-sided tests (TOST) of `over_tasks` against the margin."""
    upper: float | None
    """The one-sided 95% upper bound of `over_tasks`."""
    detectable: float | None
    """The smallest difference that the test of `over_tasks` would find with a power of 80%."""
    verdict: Verdict
    """`undecided` for a method that lacks a task."""
    notes: tuple[str, ...] = ()
    """What a reader must know of the method's runs, such as diverged seeds."""
    seeds_alone: OverSeeds | None = None
    """None in a study where no difference is tested over examples: all is of new seeds alone."""


@dataclasses.dataclass(frozen=True)
class Gains:
    """The gains of all methods of a study over its reference."""

    reference: str
    """The label of the method that each other one is compared with."""
    reference_key: str
    margin: float
    """Methods that differ by less are equivalent, in points of the metric."""
    level: float
    """Of each of the two families of tests; intervals have a confidence of 1 - level."""
    tasks: tuple[str, ...]
    """The tasks where the reference has a number."""
    lost: Mapping[str, str]
    """The other tasks, and why it has none there."""
    methods: tuple[Gain, ...]
    """In the order of the study, without methods that have no number on any task."""
    notes: tuple[str, ...] = ()
    """On methods and tasks that are left out."""


def gains(
    contests: Sequence[Contest],
    *,
    reference: str,
    margin: float,
    level: float = LEVEL,
    tasks: Sequence[str] = (),
    tests: int = 0,
    examples: Mapping[str, Values] = MappingProxyType({}),
) -> Gains:
    """Compare each method of a study with the reference, on each task and over all tasks.

    Each method but the reference is a member of two families of tests, each by Holm's procedure at
    the level: of no difference, and of a difference of the margin or more. A method is better or
    worse if the first is rejected, else equivalent if the second is. Tests over tasks see the noise
    of seeds and of the scored examples: they claim what the means over many seeds would be, scored
    on many examples of these tasks.

    A method without a number on one of the tasks (`paired_scores` says when) has a mean over the
    others. But it is in no family, and undecided: its mean is not that of the same tasks.

    Args:
      contests: one for each task, of one model; higher scores are better.
      reference: the key of a method.
      margin: in points of the metric.
      tasks: those that a method must have to be in a family; by default, those of the reference.
      tests: how many members the families have at least, with a p of 1 for those without a number.
      examples: what each example adds to the runs' scores, by task (`scored_examples.values`).

    Raises:
      ValueError: contests of several models or of one task twice, or no contest has the reference.
    """
    _require_one_study(contests, reference)
    others = [key for key in _labels(contests) if key != reference]
    found = [_over(contests, reference, others, margin, level, examples)]
    return _judged(found, tasks, tests)[0]


def all_pairs(
    contests: Sequence[Contest],
    *,
    reference: str,
    margin: float,
    level: float = LEVEL,
    tasks: Sequence[str] = (),
    tests: int = 0,
    examples: Mapping[str, Values] = MappingProxyType({}),
) -> tuple[Gains, ...]:
    """Compare each two methods of a study, on each task and over all tasks.

    All pairs are members of the two families of `gains`, of which verdicts, `adjusted`,
    `equivalent` and `detectable` are. Arguments and errors are those of `gains`.

    Returns:
      The gains over the reference, and then over each other method those of the methods after it.
    """
    _require_one_study(contests, reference)
    keys = [reference, *(key for key in _labels(contests) if key != reference)]
    found = [
        _over(contests, key, keys[at:], margin, level, examples) for at, key in enumerate(keys, 1)
    ]
    return _judged(found, tasks, tests)


def _labels(contests: Sequence[Contest]) -> dict[str, str]:
    """The labels of all methods, by key, in the order of the study."""
    return {method.key: method.label for each in contests for method in each.methods}


@dataclasses.dataclass(frozen=True)
class _Method:
    """A method's differences by task, and notes on it."""

    key: str
    label: str
    by_task: Mapping[str, MeanDifference]
    """Over seeds and examples, where the examples are known."""
    seeds_alone: Mapping[str, MeanDifference]
    notes: Sequence[str]


def _over(
    contests: Sequence[Contest],
    reference: str,
    others: Sequence[str],
    margin: float,
    level: float,
    examples: Mapping[str, Values],
) -> tuple[Gains, list[_Method]]:
    """The gains of other methods over the reference, without these methods, which follow apart."""
    by_task = {contest.task: {m.key: scored(m) for m in contest.methods} for contest in contests}
    titles = {contest.task: contest.task_title for contest in contests}
    every = _labels(contests)
    known, lost, notes = dict[str, Mapping[str, Scored]](), {}, []
    for task, methods in by_task.items():
        own = methods.get(reference)
        said = ("has no scored run",) if own is None else own.notes
        if own is not None and own.scores:
            known[task] = methods
        else:
            lost[task] = ", ".join(said)
        notes += [f"{every[reference]} on {titles[task]}: {each}" for each in said]
    found = []
    for key in others:
        own, seeds, notes_by_task = _differences(known, key, reference, examples)
        said = [f"{titles[task]}: {each}" for task, each in notes_by_task]
        if own:
            found.append(_Method(key, every[key], own, seeds, said))
        else:
            notes += [f"{every[key]} has no number on any task"] if known else []
            notes += [f"{every[key]} on {each}" for each in said]
    label = every[reference]
    return Gains(label, reference, margin, level, tuple(known), lost, (), tuple(notes)), found


def _differences(
    by_task: Mapping[str, Mapping[str, Scored]],
    key: str,
    reference: str,
    examples: Mapping[str, Values],
) -> tuple[dict[str, MeanDifference], dict[str, MeanDifference], list[tuple[str, str]]]:
    """A method's differences from the reference on each task, and notes, each with its task.

    The first ones are over seeds and examples where the examples are known, the others over seeds.
    """
    differences, alone, notes = {}, {}, []
    known = any(own for values in examples.values() for own in values.values())
    for task, methods in by_task.items():
        if key not in methods:
            notes.append((task, "has no scored run"))
            continue
        first, second = methods[key], methods[reference]
        ours, theirs, said = common(first, second)
        own = first.notes + ((said,) if first.scores and said else ())
        notes += [(task, each) for each in own]
        if len(ours):
            differences[task] = alone[task] = over_seeds(ours, theirs)
            values, missing = common_examples(first, second, examples.get(task, {}))
            if values is not None:
                differences[task] = significance.over_both(ours, theirs, *values)
            elif known:
                notes.append((task, f"tested over seeds alone, as {missing}"))
    return differences, alone, notes


def _judged(
    found: Sequence[tuple[Gains, list[_Method]]], tasks: Sequence[str], tests: int
) -> tuple[Gains, ...]:
    """The gains over several references, whose methods are members of the same two families.

    Members are the methods that have all tasks.
    """
    first, methods = found[0][0], [each for _, own in found for each in own]
    margin, level = first.margin, first.level
    whole = [len(each.by_task) == len(tasks or first.tasks) for each in methods]
    family = power.family_level(level, max(sum(whole), tests))
    decided, of_seeds = (
        _decided([over_tasks(list(own.values())) for own in means], whole, margin, level, tests)
        for means in ([e.by_task for e in methods], [e.seeds_alone for e in methods])
    )
    known = any(
        own is not each.seeds_alone[task] for each in methods for task, own in each.by_task.items()
    )
    made = []
    for each, own, alone in zip(methods, decided, of_seeds, strict=True):
        means = list(each.by_task.values())
        mean = over_tasks(means)
        made.append(
            Gain(
                key=each.key,
                label=each.label,
                by_task={task: one.estimate(level) for task, one in each.by_task.items()},
                over_tasks=own.over_tasks,
                new_task=_new_task(means, own.over_tasks, level),
                between_tasks=between_tasks(means),
                adjusted=own.adjusted,
                equivalent=own.equivalent,
                upper=own.upper,
                detectable=power.detectable(mean.error, mean.df, family) if mean.error else None,
                verdict=own.verdict,
                notes=tuple(each.notes),
                seeds_alone=alone if known else None,
            )
        )
    parts = iter(made)
    return tuple(
        dataclasses.replace(each, methods=tuple(itertools.islice(parts, len(own))))
        for each, own in found
    )


def _decided(
    means: Sequence[MeanDifference], whole: Sequence[bool], margin: float, level: float, tests: int
) -> Iterator[OverSeeds]:
    """What the tests of a family decide, whatever the errors of the means are over.

    The family has so many tests at least; those that are not there count with a p of 1.
    """
    differ = [mean.p if own else None for mean, own in zip(means, whole, strict=True)]
    within = [
        significance.equivalence_of_mean(mean, margin) if own else None
        for mean, own in zip(means, whole, strict=True)
    ]
    adjusted, same = (
        holm([*values, *[1.0] * (tests - len(values) + values.count(None))])
        for values in (differ, within)
    )
    for mean, p, equal in zip(means, adjusted, same, strict=False):
        decided = verdict(mean.mean, p, equal, level)
        yield OverSeeds(mean.estimate(level), p, equal, decided, mean.upper(level))


def verdict(mean: float, p: float | None, equivalent: float | None, level: float) -> Verdict:
    """What the adjusted p values of no difference, and of no equivalence, decide."""
    if p is not None and p < level:
        return "better" if mean > 0 else "worse"
    return "equivalent" if equivalent is not None and equivalent < level else "undecided"


def _new_task(tasks: Sequence[MeanDifference], these: Estimate, level: float) -> Estimate | None:
    """None with fewer than three tasks, or one without a variance.

    The interval is not narrower than that for these tasks alone, as it can be by chance.
    """
    found = new_task(np.array([task.mean for task in tasks]))
    if found is None or not all(task.error for task in tasks):
        return None
    widest = max(found.estimate(level), these, key=lambda it: (it.high or 0) - (it.low or 0))
    return dataclasses.replace(widest, n=found.n)


def _require_one_study(contests: Sequence[Contest], reference: str) -> None:
    if len(models := sorted({contest.model for contest in contests})) > 1:
        raise ValueError(f"gains over several models: {' and '.join(models)}")
    tasks = [contest.task for contest in contests]
    if twice := [task for task in set(tasks) if tasks.count(task) > 1]:
        raise ValueError(f"two contests on {min(twice)}: gains need one for each task")
    keys = {method.key for contest in contests for method in contest.methods}
    require_known(reference, keys, f"no method '{reference}' to compare others with")


FEWEST_TO_LEAVE_OUT = 3
"""Tasks of a study: with two, leaving one out leaves a single task, which is another question."""


def changed_without_a_task(
    contests: Sequence[Contest],
    found: Gains,
    tasks: int,
    judge: Callable[[Sequence[Contest]], Gains],
) -> Mapping[str, Sequence[Gain]] | None:
    """By left-out task, the gains over the others whose verdicts are not those over all tasks.

    Nothing is tested (None) if there are fewer than `FEWEST` tasks, or while any method lacks one.

    Args:
      contests: of which `found` was made.
      tasks: how many tasks the study has.
      judge: gives the gains of contests by the rules of the study.
    """
    if tasks < FEWEST_TO_LEAVE_OUT or any(len(each.by_task) < tasks for each in found.methods):
        return None
    verdicts = {each.key: each.verdict for each in found.methods}
    changes = {}
    for task in found.tasks:
        others = judge([contest for contest in contests if contest.task != task])
        changes[task] = [each for each in others.methods if each.verdict != verdicts[each.key]]
    return changes
