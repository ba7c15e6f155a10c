"""Test all pairs of methods of a contest, by every test that records and predictions allow."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.analysis import bootstrap, collect_runs, scored_examples, significance
from experiments.analysis.choose_methods import Contest, Method
from experiments.analysis.collect_runs import RunNumber, means_of_draws, runs_by_draw
from experiments.analysis.paired_scores import Scored, scored
from experiments.analysis.recorded_runs import scale, sign
from experiments.analysis.scored_examples import stored, values_of
from lora_jax.data.metrics import label_metrics

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
    """How many seeds both methods have, or draws of the examples that seeds share (`common`)."""
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
    """How a run scores on examples, or questions.

    `replicates` are the scores on bootstrap resamples, and `values` what each example adds, in the
    unit of scores. For accuracy, `right` says which examples are right.
    """

    replicates: np.ndarray
    values: np.ndarray
    right: np.ndarray


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
    seen = _seen(contest, resamples, seed)
    return [
        _pair(contest, first, second, scores, seen)
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

    A win is a better score, which is a lower one for some metrics.

    A tie is a difference that is not significant; that does not mean that the methods are equal.
    """
    found = []
    for pair, p in zip(family, adjusted(family), strict=True):
        test = pair.tests.get(pair.decided_by)
        sure = p is not None and p < significance.LEVEL
        found.append(
            ("win" if sign(pair.contest.metric) * test.mean > 0 else "loss")
            if test and sure
            else ""
            if p is None
            else "tie"
        )
    return found


def _pair(
    contest: Contest,
    first: Method,
    second: Method,
    scores: Mapping[str, Scored],
    seen: Mapping[str, Mapping[RunNumber, Seen]],
) -> Pair:
    keys = (first.key, second.key)
    own = [scores[key] for key in keys]
    why = [
        f"{each.label}: {', '.join(each.notes) or 'no scored run'}"
        for each in own
        if not each.scores
    ]
    tests: dict[str, significance.Estimate | None] = dict.fromkeys(KINDS)
    common = sorted(own[0].scores.keys() & own[1].scores.keys())
    if not common:
        why = why or ["no seed in common"]
    elif len(common) == 1:
        why.append("one seed in common")
    else:
        means = (means_of_draws({n: each.scores[n] for n in common}) for each in own)
        tests["seeds"] = significance.over_seeds(*means).estimate()
    known = [n for n in common if all(n in seen[key] for key in keys)]
    if any(n in method.last_scores for n in common for method in (first, second)):
        known = []  # a test of the others would be one of the lucky seeds
        why.append("a diverged run has its last score alone")
    elif len(known) < len(common):
        why.append(f"predictions of {len(known)} of {len(common)} common seeds")
    if known:
        means = [means_of_draws({n: each.scores[n] for n in known}) for each in own]
        sides = [{n: seen[key][n] for n in known} for key in keys]
        drawn = [means_of_draws({n: one.replicates for n, one in side.items()}) for side in sides]
        count = len(sides[0][known[0]].values)
        over = significance.over_examples(means[0] - means[1], drawn[0] - drawn[1], count)
        if contest.metric == "accuracy":
            right = (np.array([one.right for one in side.values()]) for side in sides)
            over = dataclasses.replace(over, p=significance.mcnemar(*right))
        tests["examples"] = over
        if len(known) > 1:
            values = (means_of_draws({n: one.values for n, one in side.items()}) for side in sides)
            tests["both"] = significance.over_both(*means, *values).estimate()
    return Pair(contest, first, second, len(runs_by_draw(common)), tests, ", ".join(why))


def _seen(contest: Contest, resamples: int, seed: int) -> dict[str, dict[RunNumber, Seen]]:
    """How each run with predictions scores on examples, by method, then by seed and draw."""
    known, metric = stored(contest), contest.metric
    every = [own for runs in known.values() for own in runs.values()]
    if not every:
        return {key: {} for key in known}
    labels, choices = every[0].labels, scored_examples.choices_of(every[0].run)
    drawn = iter(
        scale(metric)
        * bootstrap.replicates(
            metric,
            [own.outputs for own in every],
            labels,
            choices=choices,
            resamples=resamples,
            seed=seed,
        )
    )
    accuracy = metric == "accuracy"
    return {
        key: {
            number: Seen(
                next(drawn),
                values_of(metric, own),
                label_metrics.correct(own.outputs, labels, choices) if accuracy else np.empty(0),
            )
            for number, own in runs.items()
        }
        for key, runs in known.items()
    }
