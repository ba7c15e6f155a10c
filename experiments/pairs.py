"""The methods of a contest two by two: every test that their records and predictions allow."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments import compare, predictions, resample
from experiments.choose import Contest, Method, saved_score
from experiments.collect import Run, scale
from experiments.compare import Test
from lora_jax import metrics
from lora_jax.data import SPECS

KINDS = {
    "seeds": "new seeds, the same examples",
    "examples": "new examples, the same models",
    "both": "new seeds and new examples",
}
"""The tests of a pair, and what each generalises to."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two methods of a contest; a test that could not be made is None, and `why` says so."""

    contest: Contest
    first: Method
    second: Method
    common: int
    """How many seeds (and draws) both have."""
    tests: Mapping[str, Test | None]
    why: str

    @property
    def decided_by(self) -> str:
        """The kind of test that a verdict is by: both, where they are known, else what there is."""
        return next((k for k in ("both", "examples", "seeds") if self.tests[k] is not None), "")


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is known of one run: its score, and from its predictions what was right, (n,).

    `replicates` are its score on bootstrap resamples, in the unit of the score.
    """

    score: float
    right: np.ndarray | None = None
    replicates: np.ndarray | None = None
    n: int = 0


def pairs(contest: Contest, resamples: int, seed: int) -> list[Pair]:
    """All pairs of the methods of a contest, the first ones first.

    Raises:
      ValueError: predictions of other examples than another run's, or that do not give the score of
        their record.
    """
    seen = _seen(contest, resamples, seed)
    return [
        _pair(contest, first, second, seen[first.key], seen[second.key])
        for first, second in itertools.combinations(contest.methods, 2)
    ]


def swapped(pair: Pair) -> Pair:
    """The same tests with the methods the other way round."""
    tests = {kind: None if test is None else _negative(test) for kind, test in pair.tests.items()}
    return dataclasses.replace(pair, first=pair.second, second=pair.first, tests=tests)


def adjusted(family: Sequence[Pair], kind: str = "") -> list[float | None]:
    """Holm's p values of one kind of test over a family of pairs; by default of what decides."""
    values = []
    for pair in family:
        test = pair.tests.get(kind or pair.decided_by)
        values.append(None if test is None else test.p)
    return compare.holm(values)


def verdicts(family: Sequence[Pair]) -> list[str]:
    """`win`, `tie` or `loss` of the first of each pair, or nothing where they have no test."""
    found = []
    for pair, p in zip(family, adjusted(family), strict=True):
        test = pair.tests.get(pair.decided_by)
        if test is None:
            found.append("")
        elif p is None or p >= compare.LEVEL:
            found.append("tie")
        else:
            found.append("win" if test.difference > 0 else "loss")
    return found


def _negative(test: Test) -> Test:
    low = None if test.high is None else -test.high
    high = None if test.low is None else -test.low
    return dataclasses.replace(test, difference=-test.difference, low=low, high=high)


def _pair(
    contest: Contest,
    first: Method,
    second: Method,
    ours: Mapping[tuple[int, int], Seen],
    theirs: Mapping[tuple[int, int], Seen],
) -> Pair:
    common = sorted(ours.keys() & theirs.keys())
    tests: dict[str, Test | None] = dict.fromkeys(KINDS)
    why = [] if common else ["no seed in common"]
    if len(common) == 1:
        why.append("one seed in common")
    if len(common) > 1:
        scores = (np.array([side[k].score for k in common]) for side in (ours, theirs))
        tests["seeds"] = compare.over_seeds(*scores)
    stored = [k for k in common if ours[k].n and theirs[k].n]
    if len(stored) < len(common):
        why.append(f"predictions of {len(stored)} of {len(common)} common seeds")
    if stored:
        one, two = ([side[k] for k in stored] for side in (ours, theirs))
        observed = np.array([a.score - b.score for a, b in zip(one, two, strict=True)])
        drawn = np.array([_drawn(a) - _drawn(b) for a, b in zip(one, two, strict=True)])
        over = compare.over_examples(observed, drawn, one[0].n)
        if contest.metric == "accuracy":
            over = dataclasses.replace(over, p=compare.mcnemar(_right(one), _right(two)))
        tests["examples"] = over
        if len(stored) > 1:
            tests["both"] = compare.over_both(observed, drawn)
    return Pair(contest, first, second, len(common), tests, ", ".join(why))


def _drawn(seen: Seen) -> np.ndarray:
    assert seen.replicates is not None  # of runs with predictions
    return seen.replicates


def _right(runs: Iterable[Seen]) -> np.ndarray:
    return np.array([run.right for run in runs])


def _seen(contest: Contest, resamples: int, seed: int) -> dict[str, dict[tuple[int, int], Seen]]:
    """By method, then by seed and draw, what is known of each completed run."""
    found: dict[str, dict[tuple[int, int], Seen]] = {}
    first: tuple[Run, np.ndarray] | None = None
    for method in contest.methods:
        found[method.key] = {}
        for run in method.runs:
            if not run.completed or (score := saved_score(run)) is None:
                continue
            part = predictions.read(run.folder).get("validation")
            if part is None or part.labels is None:
                found[method.key][run.number] = Seen(score)
                continue
            first = first or (run, part.labels)
            if not np.array_equal(first[1], part.labels):
                raise ValueError(
                    f"{first[0].folder} and {run.folder} were scored on different examples: their "
                    "labels differ"
                )
            found[method.key][run.number] = _of(run, score, part, contest, resamples, seed)
    return found


def _of(
    run: Run,
    score: float,
    part: predictions.Predictions,
    contest: Contest,
    resamples: int,
    seed: int,
) -> Seen:
    spec = SPECS.get(run.record.config["data"]["name"])
    choices, unit = spec.choices if spec else 1, scale(contest.metric)
    outputs, labels = np.asarray(part.outputs, np.float64), part.labels
    assert labels is not None  # looked at by who calls
    whole = unit * metrics.score((contest.metric,), outputs, labels, choices)[contest.metric]
    n = len(labels) // choices
    if abs(whole - score) > unit * max(1e-3, 5 / n):  # roundings may turn an example or two
        raise ValueError(
            f"{run.folder}: its predictions give {contest.metric} {whole:.4g}, its record "
            f"{score:.4g}"
        )
    right = None
    if contest.metric == "accuracy":
        right = resample.correct(outputs, labels, choices)
    drawn = resample.replicates(
        contest.metric, outputs, labels, choices=choices, resamples=resamples, seed=seed
    )
    return Seen(score, right, unit * drawn, n)
