"""Planted studies of answers that are right or wrong, and how often intervals cover the truth.

All methods are equal, so each true difference is 0. Prints the table of docs/reference/verdicts.md,
in about 15 minutes:

    PYTHONPATH=tests/support python -m crossed_studies
"""

import dataclasses
import math

import numpy as np

from experiments.analysis import bootstrap
from experiments.analysis.significance import (
    LEVEL,
    MeanDifference,
    holm,
    over_both,
    over_seeds,
    over_tasks,
    squares,
)
from lora_jax.data.metrics import label_metrics

METHODS = 6
"""The reference and five others, which are a family."""


@dataclasses.dataclass(frozen=True)
class Planted:
    """A task: an answer is right if a sum of normal numbers is above 0.

    All methods have the difficulty of an example and most of the noise of an answer in common.
    """

    examples: int
    seeds: float = 0.1
    """The sd of what a seed adds to all answers of one method."""
    sentences: float = 0.4
    """The sd of what an example adds with all seeds of one method."""
    metric: str = "accuracy"

    def draw(self, rng, seeds, methods=METHODS):
        """Scores in points, (methods, seeds), and what each example adds, (..., examples)."""

        def normal(*shape):
            return rng.standard_normal(shape, dtype=np.float32)

        n = self.examples
        common = 1 + normal(n) + 0.1 * normal(seeds, 1) + 0.7 * normal(seeds, n)
        own = self.seeds * normal(methods, seeds, 1) + self.sentences * normal(methods, 1, n)
        right = common + own + math.sqrt(1 - 0.7**2) * normal(methods, seeds, n) > 0
        if self.metric == "accuracy":
            return 100 * right.mean(2), 100.0 * right
        labels = (rng.random(n) < 0.35).astype(int)
        outputs = np.eye(2)[np.where(right, labels, 1 - labels)]
        found = [[bootstrap.pseudovalues(self.metric, e, labels) for e in own] for own in outputs]
        values = 100 * np.array(found)
        scores = [
            [label_metrics.score((self.metric,), e, labels)[self.metric] for e in own]
            for own in outputs
        ]
        return 100 * np.array(scores), values


def tested(rng, tasks, seeds):
    """The differences of all methods from the first, of each kind of error: (kinds, methods)."""
    drawn = [task.draw(rng, seeds) for task in tasks]
    found = []
    for at in range(1, METHODS):
        pairs = [(s[at], s[0], v[at], v[0]) for s, v in drawn]
        alone = [over_seeds(*each[:2]) for each in pairs]
        means = [over_tasks([over_both(*each) for each in pairs]), over_tasks(alone)]
        parts = [squares(s - r, v - w) for s, r, v, w in pairs]
        error = math.sqrt(sum(each.seeds + each.examples for each in parts)) / len(tasks)
        found.append((*means, MeanDifference(means[0].mean, error, seeds - 1.0, seeds)))
    return list(zip(*found, strict=True))


def shares(tasks, seeds, studies, seed=0):
    """Of each kind, the share of 95% intervals with the truth, and of families with a finding."""
    rng = np.random.default_rng([seed, seeds])
    p = np.array(
        [
            [[1.0 if e.p is None else e.p for e in kind] for kind in tested(rng, tasks, seeds)]
            for _ in range(studies)
        ]
    )
    families = [[min(holm(list(own))) < LEVEL for own in kind] for kind in p.swapaxes(0, 1)]
    return [
        (float(covered), float(np.mean(false)))
        for covered, false in zip((p >= LEVEL).mean((0, 2)), families, strict=True)
    ]


STUDIES = {
    "100 examples": [Planted(100)],
    "300 examples": [Planted(300)],
    "1,500 examples": [Planted(1500)],
    "300, seeds alike": [Planted(300, seeds=0.0, sentences=0.6)],
    "300, examples alike": [Planted(300, sentences=0.0)],
    "300, Matthews": [Planted(300, metric="matthews")],
    "five tasks": [
        Planted(100, 0.1, 0.3),
        Planted(300, 0.4, 0.3),
        Planted(300, 0.05, 0.6),
        Planted(1500, 0.05, 0.2),
        Planted(1500, 0.2, 0.4),
    ],
}


def main():
    heads = [f"{seeds} seeds" for seeds in (3, 5, 10, 20)] + ["10, seeds alone", "10, the sum"]
    print(f"| planted study | {' | '.join(heads)} |\n|{' --- |' * (1 + len(heads))}")
    for name, tasks in STUDIES.items():
        own = {seeds: shares(tasks, seeds, 1000) for seeds in (3, 5, 10, 20)}
        shown = [each[0] for each in own.values()] + own[10][1:]
        cells = [f"{100 * covered:.1f} / {100 * false:.1f}" for covered, false in shown]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
