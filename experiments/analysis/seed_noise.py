"""How much the differences of a contest's methods from a reference vary from seed to seed."""

import dataclasses

import numpy as np

from experiments.analysis import pairing, power, significance
from experiments.analysis.choose_methods import Contest
from experiments.analysis.paired_scores import common, scored


@dataclasses.dataclass(frozen=True)
class Noise:
    """The sd of paired differences in points, pooled over the methods of one task.

    `seeds` is the smallest number of common seeds of a method and the reference.
    """

    task: str
    methods: int
    seeds: int
    sd: float
    pairing: pairing.Paired


def noise(contest: Contest, reference: str) -> Noise | None:
    """The noise of a contest; None if no method has two seeds in common with the reference."""
    every = {method.key: scored(method, contest.metric) for method in contest.methods}
    if reference not in every:
        return None
    pairs = [common(each, every[reference])[:2] for key, each in every.items() if key != reference]
    known = [(first, second) for first, second in pairs if len(first) > 1]
    if not known:
        return None
    deviations = [_deviation(first, second) for first, second in known]
    seeds = [len(first) for first, _ in known]
    return Noise(
        task=contest.task_title,
        methods=len(known),
        seeds=min(seeds),
        sd=power.pooled(deviations, [n - 1 for n in seeds]),
        pairing=pairing.together([pairing.bought(*each) for each in known]),
    )


def _deviation(first: np.ndarray, second: np.ndarray) -> float:
    """The standard deviation of differences; 0 if they are equal but for roundings."""
    differences = first - second
    if significance.constant(differences, max(np.abs(first).max(), np.abs(second).max())):
        return 0.0
    return float(np.std(differences, ddof=1))
