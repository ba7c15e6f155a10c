"""Test all pairs of methods of a contest, by every test that records and predictions allow."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.analysis import bootstrap, collect_runs, scored_examples, significance
from experiments.analysis.choose_methods import Contest, Method
from experiments.analysis.collect_runs import means_of_draws, runs_by_draw
from experiments.analysis.paired_scores import Scored, scored
from experiments.analysis.recorded_runs import scale
from experiments.analysis.scored_examples import stored, values_of
from lora_jax.metrics import label_metrics

KINDS = {
    "seeds": "new seeds, the same examples",
    "examples": "new examples, the same models",
    "both": "new seeds and new examples",
}
"""The tests of a pair, and what each generalises to."""
OF_DRAWS = {
    "seeds": "new draws of the training examples, the same seeds, the same examples",
    "both": "new draws of the training examples and new examples, the same seeds",
}
"""What they generalise to instead, where draws of the training examples have seeds in common."""

MARKS = {"examples": "†", "seeds": "‡"}
"""Marks of verdicts by a test that claims less than the test over both."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two methods of a contest and their tests; a test that is impossible is None, see `why`."""

    contest: Contest
    first: Method
    second: Method
    common: int
    """How many seeds both methods have, or draws of the examples that seeds share (`draws`)."""
    tests: Mapping[str, significance.Estimate | None]
    why: str

    @property
    def decided_by(self) -> str:
        """The kind of the test that decides: the first of both, seeds, examples with a p value."""
        known = {kind for kind, test in self.tests.items() if test and test.p is not None}
        return next((kind for kind in ("both", "seeds", "examples") if kind in known), "")

    def generalises_to(self, kind: str) -> str:
        """What the test of a kind is of, in words."""
        if collect_runs.draws_share_seeds(self.first.scores().keys() & self.second.scores().keys()):
            return OF_DRAWS.get(kind, KINDS[kind])
        return KINDS[kind]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is known about one run: its score and, if it has predictions, how it scores on examples.

    `n` is the number of examples (or questions), 0 without predictions. `replicates` are the scores
    on bootstrap resamples, and `values` what each example adds, in the unit of `score`. For
    accuracy, `right` says which examples (or questions) are right. A run that diverged has its last
    score (see `paired_scores`) and no more.
    """

    score: float
    diverged: bool = False
    n: int = 0
    replicates: np.ndarray | None = None
    right: np.ndarray | None = None
    values: np.ndarray | None = None


def pairs(
    contest: Contest, resamples: int, seed: int, reference: Method | None = None
) -> list[Pair]:
    """Test all pairs of the methods of a contest, in the order of the methods.

    Args:
      reference: if it is given, only its pairs are tested.

    Raises:
      ValueError: the predictions of two runs are of different examples, or predictions do not give
        the score in their record.
    """
    scores = {method.key: scored(method) for method in contest.methods}
    seen = _seen(contest, scores, resamples, seed)
    unknown = {key: _unknown(each) for key, each in scores.items()}
    return [
        _pair(
            contest,
            first,
            second,
            seen[first.key],
            seen[second.key],
            [said for key in (first.key, second.key) for said in unknown[key]],
        )
        for first, second in itertools.combinations(contest.methods, 2)
        if reference is None or reference.key in (first.key, second.key)
    ]


def swapped(pair: Pair) -> Pair:
    """The pair and its tests with the two methods exchanged."""
    tests = {kind: None if test is None else -test for kind, test in pair.tests.items()}
    return dataclasses.replace(pair, first=pair.second, second=pair.first, tests=tests)


def adjusted(family: Sequence[Pair]) -> list[float | None]:
    """Holm's p values of the deciding tests of all pairs of a report, which are one family."""
    tests = [pair.tests.get(pair.decided_by) for pair in family]
    return significance.holm([None if test is None else test.p for test in tests])


def verdicts(family: Sequence[Pair]) -> list[str]:
    """`win`, `tie` or `loss` for the first method of each pair, or empty if no test has a p value.

    A tie is a difference that is not significant; that does not mean that the methods are equal.
    """
    found = []
    for pair, p in zip(family, adjusted(family), strict=True):
        test = pair.tests.get(pair.decided_by)
        if test is None or p is None:
            found.append("")
        elif p >= significance.LEVEL:
            found.append("tie")
        else:
            found.append("win" if test.mean > 0 else "loss")
    return found


def _unknown(found: Scored) -> list[str]:
    """Why a method has no number; nothing if it has one."""
    if found.scores:
        return []
    return [f"{found.label}: {', '.join(found.notes) or 'no scored run'}"]


def _pair(
    contest: Contest,
    first: Method,
    second: Method,
    ours: Mapping[tuple[int, int], Seen],
    theirs: Mapping[tuple[int, int], Seen],
    unknown: Sequence[str],
) -> Pair:
    common = sorted(ours.keys() & theirs.keys())
    tests: dict[str, significance.Estimate | None] = dict.fromkeys(KINDS)
    why = list(unknown) if unknown or common else ["no seed in common"]
    if len(common) == 1:
        why.append("one seed in common")
    if len(common) > 1:
        scores = (means_of_draws({n: side[n].score for n in common}) for side in (ours, theirs))
        tests["seeds"] = significance.over_seeds(*scores).estimate()
    both = {number: (ours[number], theirs[number]) for number in common}
    seen = {number: (a, b) for number, (a, b) in both.items() if a.n and b.n}
    if any(a.diverged or b.diverged for a, b in both.values()):
        seen = {}  # a test of the others would be one of the lucky seeds
        why.append("a diverged run has its last score alone")
    elif len(seen) < len(common):
        why.append(f"predictions of {len(seen)} of {len(common)} common seeds")
    if seen:
        sides = [{n: pair[at] for n, pair in seen.items()} for at in (0, 1)]
        scores = [means_of_draws({n: one.score for n, one in side.items()}) for side in sides]
        drawn = [means_of_draws({n: one.replicates for n, one in side.items()}) for side in sides]
        count = next(iter(seen.values()))[0].n
        over = significance.over_examples(scores[0] - scores[1], drawn[0] - drawn[1], count)
        if contest.metric == "accuracy":
            right = (np.array([one.right for one in side.values()]) for side in sides)
            over = dataclasses.replace(over, p=significance.mcnemar(*right))
        tests["examples"] = over
        if len(seen) > 1:
            values = (means_of_draws({n: one.values for n, one in side.items()}) for side in sides)
            tests["both"] = significance.over_both(*scores, *values).estimate()
    return Pair(contest, first, second, len(runs_by_draw(common)), tests, ", ".join(why))


def _seen(
    contest: Contest, scores: Mapping[str, Scored], resamples: int, seed: int
) -> dict[str, dict[tuple[int, int], Seen]]:
    """What is known about each run with a score, by method, then by seed and draw."""
    known = stored(contest)
    every = [(key, number, own) for key, runs in known.items() for number, own in runs.items()]
    found: dict[str, dict[tuple[int, int], Seen]] = {m.key: {} for m in contest.methods}
    for method in contest.methods:
        for run in (each for each in method.runs if each.number in scores[method.key].scores):
            score = scores[method.key].scores[run.number]
            found[method.key][run.number] = Seen(score, not run.completed)
    if not every:
        return found
    first, metric = every[0][2], contest.metric
    labels, choices = first.labels, scored_examples.choices_of(first.run)
    outputs = [own.outputs for _, _, own in every]
    drawn = scale(metric) * bootstrap.replicates(
        metric, outputs, labels, choices=choices, resamples=resamples, seed=seed
    )
    for (key, number, own), replicated in zip(every, drawn, strict=True):
        if number in found[key]:
            accuracy = metric == "accuracy"
            right = label_metrics.correct(own.outputs, labels, choices) if accuracy else None
            score, n = found[key][number].score, len(labels) // choices
            values = values_of(metric, own)
            found[key][number] = Seen(score, False, n, replicated, right, values)
    return found
